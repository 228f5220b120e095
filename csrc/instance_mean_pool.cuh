#pragma once

// Device code of instance_mean_pool, and its launches. ids: [N, P] contiguous, int32 or int64;
// features and pooled: [N, C, P] or [N, P, C].
//
// An instance is known by one pixel of it, its owner: a hash table in global memory, of pixels,
// says which; ids are compared through it. A warp reads a strip of pixels, keeps the sums of the id
// it is on in registers, and writes a record (owner, area, sums) where the id changes: some ten per
// strip of 512 pixels of a street scene. Records are added to the sums of their owners.
//
// Deterministic in spite of atomics: they are atomics of integers. The sums of an instance are
// fixed-point numbers, on the scale of the largest of its records, so that any order gives the same
// 64 bits. Within a record the order is fixed. Which pixel becomes the owner depends on chance, and
// nothing on the owner.
//
// Memory sees ids twice (once for each 4 channels, and once), features and pooled once, and the
// clearing of the table, 5 bytes per pixel. Nothing is asked by the host: there is room for an
// instance in every pixel, of which only what instances there are is touched.

#include <cmath>
#include <cstdint>

#include "instance_table.cuh"

namespace pix2pixhd_fast {

__device__ inline float warp_sum(float value) {
#pragma unroll
  for (int lanes = 16; lanes > 0; lanes /= 2) {
    value += __shfl_xor_sync(kAllLanes, value, lanes);
  }
  return value;
}

// Which strip a warp has, of which image and group of channels.
struct Place {
  int64_t strip, image, group;

  __device__ explicit Place(const PoolShape& s)
      : strip(static_cast<int64_t>(blockIdx.x) * kPoolWarps + threadIdx.y),
        image(blockIdx.y),
        group(blockIdx.z) {
    if (strip >= s.strips()) strip = -1;
  }
  __device__ int64_t index(const PoolShape& s) const {
    return (group * s.images + image) * s.strips() + strip;
  }
  __device__ int channels(const PoolShape& s) const {
    return static_cast<int>(min(s.channels - group * kGroup, static_cast<int64_t>(kGroup)));
  }
};

template <typename Id>
struct Pixel {
  Id id;
  float values[kGroup];
};

// What a warp has summed of the id it is on, and the records it writes.
template <typename Id>
class Collector {
 public:
  __device__ Collector(const Id* ids, const PoolShape& shape, const Scratch& scratch, Place place)
      : ids_(ids),
        shape_(shape),
        scratch_(scratch),
        place_(place),
        records_(scratch.records + place.index(shape) * kStrip) {}

  // 32 pixels from `first` on, of which those `inside` exist.
  __device__ void add(int first, bool inside, const Pixel<Id>& pixel) {
    const Id id = pixel.id;
    const unsigned all = __ballot_sync(kAllLanes, inside);
    unsigned rest = all;
    while (rest != 0) {
      const int leader = __ffs(static_cast<int>(rest)) - 1;
      const Id other = __shfl_sync(kAllLanes, id, leader);
      const bool mine = inside && id == other;
      const unsigned group = __ballot_sync(kAllLanes, mine);
      rest &= ~group;
      if (area_ == 0 || (group == all && other != id_)) start(other, first + leader);
      if (other == id_) {
        area_ += __popc(group);
#pragma unroll
        for (int c = 0; c < kGroup; ++c) sums_[c] += mine ? pixel.values[c] : 0.0f;
      } else {
        float own[kGroup];
#pragma unroll
        for (int c = 0; c < kGroup; ++c) own[c] = mine ? pixel.values[c] : 0.0f;
        put(first + leader, __popc(group), own);
      }
    }
  }

  __device__ void finish() {
    if (area_ != 0) put(pixel_, area_, sums_);
    if (threadIdx.x == 0) scratch_.counts[place_.index(shape_)] = count_;
  }

 private:
  __device__ void start(Id id, int pixel) {
    if (area_ != 0) put(pixel_, area_, sums_);
    id_ = id;
    pixel_ = pixel;
    area_ = 0;
#pragma unroll
    for (int c = 0; c < kGroup; ++c) sums_[c] = 0.0f;
  }

  // The sums of all lanes. The first lane to claim an owner clears its sums, for all groups.
  __device__ void put(int pixel, int area, const float (&sums)[kGroup]) {
    Record record;
#pragma unroll
    for (int c = 0; c < kGroup; ++c) record.sums[c] = warp_sum(sums[c]);
    if (threadIdx.x == 0) {
      const int64_t entries = shape_.entries();
      bool is_new;
      record.owner = claim(ids_, scratch_.table + place_.image * entries, entries, pixel, is_new);
      record.area = area;
      records_[count_] = record;
      if (is_new) clear(place_.image * shape_.pixels + record.owner);
    }
    ++count_;
  }

  __device__ void clear(int64_t owner) {
    scratch_.areas[owner] = 0;
    for (int64_t c = owner * shape_.channels; c < (owner + 1) * shape_.channels; ++c) {
      scratch_.sums[c] = 0;
      scratch_.peaks[c] = 0;
    }
  }

  const Id* ids_;
  const PoolShape& shape_;
  const Scratch& scratch_;
  const Place place_;
  Record* records_;
  Id id_ = 0;
  int pixel_ = 0, area_ = 0, count_ = 0;
  float sums_[kGroup] = {};
};

// 0 at or behind `end`.
template <typename Id, typename T>
__device__ inline Pixel<Id> load_pixel(const Id* ids, const T* features, const PoolShape& shape,
                                       const Place& place, int channels, int64_t at, int64_t end) {
  Pixel<Id> pixel = {};
  if (at < end) {
    pixel.id = __ldg(ids + at);
#pragma unroll
    for (int c = 0; c < kGroup; ++c) {
      if (c < channels) {
        pixel.values[c] = read(features + shape.at(place.image, at, place.group * kGroup + c));
      }
    }
  }
  return pixel;
}

// Grid: blocks of strips, images, groups of channels; block: 32 x kPoolWarps.
// At most 64 registers: without a bound ptxas takes 48 on sm_100 and sm_120, and spills.
template <typename Id, typename T>
__global__ void __launch_bounds__(32 * kPoolWarps, 8)
    sum_strips(const Id* __restrict__ all_ids, const T* __restrict__ features, PoolShape shape,
               Scratch scratch) {
  const Place place(shape);
  if (place.strip < 0) return;  // the whole warp
  const Id* ids = all_ids + place.image * shape.pixels;
  const int channels = place.channels(shape);
  Collector<Id> collector(ids, shape, scratch, place);
  const int64_t begin = place.strip * kStrip;
  const int64_t end = min(begin + kStrip, shape.pixels);
  Pixel<Id> pixel = load_pixel(ids, features, shape, place, channels, begin + threadIdx.x, end);
#pragma unroll 1
  for (int64_t first = begin; first < end; first += 32) {
    // In flight while this one is added.
    const int64_t later = first + 32 + threadIdx.x;
    const Pixel<Id> next = load_pixel(ids, features, shape, place, channels, later, end);
    collector.add(static_cast<int>(first), first + threadIdx.x < end, pixel);
    pixel = next;
  }
  collector.finish();
}

// Calls body(record, index of the first of its sums, channels) for the records of a warp.
template <typename Body>
__device__ inline void for_each_record(const PoolShape& shape, const Scratch& scratch, Body body) {
  const Place place(shape);
  if (place.strip < 0) return;
  const Record* records = scratch.records + place.index(shape) * kStrip;
  const int count = scratch.counts[place.index(shape)];
  for (int i = threadIdx.x; i < count; i += 32) {
    const Record record = records[i];
    const int64_t owner = place.image * shape.pixels + record.owner;
    body(record, owner, owner * shape.channels + place.group * kGroup);
  }
}

__global__ void __launch_bounds__(32 * kPoolWarps) raise_peaks(PoolShape shape, Scratch scratch) {
  const int channels = Place(shape).channels(shape);
  for_each_record(shape, scratch, [&](const Record& record, int64_t, int64_t first) {
#pragma unroll
    for (int c = 0; c < kGroup; ++c) {
      if (c < channels) {
        atomicMax(scratch.peaks + first + c, __float_as_uint(fabsf(record.sums[c])));
      }
    }
  });
}

// Fixed-point numbers are multiples of 2^-shift. A record is less than twice the power of two below
// the peak, and there are at most 2^headroom of them: the sum stays below 2^62.
__device__ inline int shift_of(unsigned peak, int headroom) {
  const int exponent = max(static_cast<int>(peak >> 23), 1) - 127;
  return 61 - headroom - exponent;
}

__global__ void __launch_bounds__(32 * kPoolWarps)
    add_records(PoolShape shape, Scratch scratch, int headroom) {
  const int channels = Place(shape).channels(shape);
  for_each_record(shape, scratch, [&](const Record& record, int64_t owner, int64_t first) {
    if (blockIdx.z == 0) atomicAdd(scratch.areas + owner, record.area);
#pragma unroll
    for (int c = 0; c < kGroup; ++c) {
      const unsigned peak = c < channels ? scratch.peaks[first + c] : 0;
      if (peak != 0 && peak < kInfinity) {
        const double scaled = ldexp(static_cast<double>(record.sums[c]), shift_of(peak, headroom));
        atomicAdd(scratch.sums + first + c,
                  static_cast<unsigned long long>(static_cast<long long>(rint(scaled))));
      }
    }
  });
}

__device__ inline float mean_of(const Scratch& scratch, int64_t owner, int64_t index,
                                int headroom) {
  const unsigned peak = __ldg(scratch.peaks + index);
  if (peak >= kInfinity) return __uint_as_float(0x7fc00000);
  const auto sum = static_cast<long long>(__ldg(scratch.sums + index));
  const float mean = static_cast<float>(sum) / static_cast<float>(__ldg(scratch.areas + owner));
  return ldexpf(mean, -shift_of(peak, headroom));
}

// Grid: blocks of 32 * kSteps pixels for each warp, images.
template <typename Id, typename T>
__global__ void __launch_bounds__(32 * kPoolWarps)
    write_means(const Id* __restrict__ all_ids, T* __restrict__ pooled, PoolShape shape,
                Scratch scratch, int headroom) {
  const int64_t warp = static_cast<int64_t>(blockIdx.x) * kPoolWarps + threadIdx.y;
  const int64_t first = warp * 32 * kSteps + threadIdx.x;
  const int64_t image = blockIdx.y, entries = shape.entries();
  const Id* ids = all_ids + image * shape.pixels;
  const int* table = scratch.table + image * entries;
  int owners[kSteps];
#pragma unroll
  for (int s = 0; s < kSteps; ++s) {
    const int64_t p = first + s * 32;
    if (p >= shape.pixels) {
      owners[s] = -1;
    } else if (s > 0 && __ldg(ids + p) == __ldg(ids + p - 32)) {
      owners[s] = owners[max(s - 1, 0)];
    } else {
      owners[s] = owner_of(ids, table, entries, __ldg(ids + p));
    }
  }
  for (int64_t c = 0; c < shape.channels; ++c) {
    float mean = 0.0f;
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
      if (owners[s] < 0) break;
      const int64_t owner = image * shape.pixels + owners[s];
      if (s == 0 || owners[s] != owners[max(s - 1, 0)]) {
        mean = mean_of(scratch, owner, owner * shape.channels + c, headroom);
      }
      write(mean, pooled + shape.at(image, first + s * 32, c));
    }
  }
}

// `memory`: scratch_bytes(shape), on 16 bytes. Nothing to do is not allowed. Returns
// cudaErrorInvalidValue for sizes that grids and 32-bit pixel numbers do not hold.
template <typename Id, typename T>
[[nodiscard]] cudaError_t launch_instance_mean_pool(const Id* ids, const T* features, T* pooled,
                                                    char* memory, const PoolShape& shape,
                                                    cudaStream_t stream) {
  if (shape.pixels > INT32_MAX - kStrip || shape.images > 65535 || shape.groups() > 65535) {
    return cudaErrorInvalidValue;
  }
  const Scratch scratch = scratch_in(memory, shape);
  int headroom = 0;
  while (int64_t{1} << headroom < shape.pixels) ++headroom;
  const auto blocks = [](int64_t work, int64_t each) {
    return static_cast<unsigned>((work + each - 1) / each);
  };
  const dim3 block(32, kPoolWarps);
  const auto images = static_cast<unsigned>(shape.images);
  const dim3 strips(blocks(shape.strips(), kPoolWarps), images,
                    static_cast<unsigned>(shape.groups()));
  const dim3 pixels(blocks(shape.pixels, 32 * kSteps * kPoolWarps), images);
  const int64_t quads = shape.images * shape.entries() / 4;
  const auto clearing = min(blocks(quads, 256), 4096u);
  const cudaError_t errors[] = {
      launch(clear_table, dim3(clearing), dim3(256), 0, stream,
             reinterpret_cast<int4*>(scratch.table), quads),
      launch(sum_strips<Id, T>, strips, block, 0, stream, ids, features, shape, scratch),
      launch(raise_peaks, strips, block, 0, stream, shape, scratch),
      launch(add_records, strips, block, 0, stream, shape, scratch, headroom),
      launch(write_means<Id, T>, pixels, block, 0, stream, ids, pooled, shape, scratch, headroom),
  };
  for (const cudaError_t error : errors) {
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

}  // namespace pix2pixhd_fast
