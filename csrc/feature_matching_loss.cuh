#pragma once

// Device code of feature_matching_loss, and its launches: all features in one launch, and a second
// one that combines the sums of its blocks. A block works off a chunk of one feature, which lies
// within an image. The table of the features is a parameter of the kernel: nothing is copied to the
// device before it.
//
// Features are [images, pixels, channels]: a contiguous one is [N * C, H * W, 1], one without norms
// [1, elements, 1]. They are read in vectors of 16 bytes: of channels, or of pixels where there is
// one channel; where that does not come out even, value by value.

#include "sums.cuh"

namespace pix2pixhd_fast {

constexpr int kItems = 16;         // vectors of fake and of real that a thread reads in a chunk
constexpr int kMostFeatures = 20;  // of a launch: their table fits into 4 KiB of parameters

// mean and rstd [images, channels], gamma and beta [affine]; null for 0, 1, 1 and 0.
struct Side {
  const float *mean, *rstd, *gamma, *beta;
};

struct Feature {
  const void *fake, *real;
  void* dx;  // written by the gradient
  Side f, r;
  int64_t images, pixels;
  int channels, affine;
  float scale;  // weight / elements
  float slope;  // below zero: 1 without an activation
  bool tanh, summed;
  // What `plan` finds: vectors of `vector` values, `items` times `columns` of them in an image.
  int vector, columns, width;  // width: columns of a block
  int chunks, column_blocks;   // of an image
  int64_t items, chunk_items, first_block, first_partial, first_sum;
};

struct Table {
  Feature at[kMostFeatures];
  int count;
  int64_t blocks, partials, sums;
};
static_assert(sizeof(Table) + 64 <= 4096);

template <typename T>
constexpr int kVector = 16 / static_cast<int>(sizeof(T));

inline bool on_16_bytes(const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }

// Fills in what follows from the features.
template <typename T>
void plan(Table& table) {
  table.blocks = table.partials = table.sums = 0;
  for (int i = 0; i < table.count; ++i) {
    Feature& a = table.at[i];
    const int64_t even = a.channels == 1 ? a.pixels : a.channels;
    const bool whole = even % kVector<T> == 0 && on_16_bytes(a.fake) && on_16_bytes(a.real);
    a.vector = whole && on_16_bytes(a.dx) ? kVector<T> : 1;
    a.columns = a.channels == 1 ? 1 : a.channels / a.vector;
    a.items = a.channels == 1 ? a.pixels / a.vector : a.pixels;
    a.width = a.columns < kThreads ? a.columns : kThreads;
    a.column_blocks = static_cast<int>(ceil_div(a.columns, a.width));
    a.chunk_items = kThreads / a.width * kItems;
    a.chunks = static_cast<int>(ceil_div(a.items, a.chunk_items));
    a.first_block = table.blocks;
    a.first_partial = table.partials;
    a.first_sum = table.sums;
    table.blocks += a.images * a.column_blocks * a.chunks;
    if (a.summed) {
      table.partials += a.images * a.chunks * 2 * a.channels;
      table.sums += 2 * a.images * a.channels;
    }
  }
}

template <typename T, int V>
struct alignas(sizeof(T) * V) Pack {
  T at[V];
};

template <typename T, int V>
__device__ inline Pack<T, V> load(const void* tensor, int64_t index) {
  Pack<T, V> pack;
  const T* from = static_cast<const T*>(tensor) + index * V;
  if constexpr (V == 1) {
    pack.at[0] = *from;
  } else {
    *reinterpret_cast<uint4*>(&pack) = __ldg(reinterpret_cast<const uint4*>(from));
  }
  return pack;
}

// Where a block works: its feature, and the thread's column and items.
struct Place {
  int64_t image, item, last;  // the thread's first item, and the end of the chunk
  int chunk, column, rows;    // rows: items of a block at a time
  bool idle;
};

// A norm at one channel: xhat = (x - mean) * rstd and z = xhat * gamma + beta.
struct Channel {
  float mean, rstd, gamma, beta;
};

__device__ inline Channel channel_of(const Side& side, const Feature& a, const Place& place,
                                     int channel) {
  const int64_t at = place.image * a.channels + channel;
  const int affine = a.channels == 1 ? static_cast<unsigned>(place.image) % a.affine : channel;
  return {side.mean ? side.mean[at] : 0.0f, side.rstd ? side.rstd[at] : 1.0f,
          side.gamma ? side.gamma[affine] : 1.0f, side.beta ? side.beta[affine] : 0.0f};
}

// Products that are not made one with a sum: equal features must differ by nothing.
__device__ inline float xhat_of(float x, const Channel& c) { return __fmul_rn(x - c.mean, c.rstd); }
__device__ inline float z_of(float xhat, const Channel& c) {
  return __fmul_rn(xhat, c.gamma) + c.beta;
}
// The comparison lets a NaN through, and -inf becomes 0 where the slope is 0.
__device__ inline float activate(float z, const Feature& a) {
  if (a.tanh) return tanhf(z);
  return z <= 0.0f ? (a.slope == 0.0f ? 0.0f : __fmul_rn(z, a.slope)) : z;
}

// d = act(z) - act(z of real), and g = sign(d) * act'(z)
struct Difference {
  float d, g, xhat;
};

__device__ inline Difference compare(float fake, float real, const Channel& f, const Channel& r,
                                     const Feature& a) {
  const float xhat = xhat_of(fake, f);
  const float z = z_of(xhat, f);
  const float y = activate(z, a);
  const float d = y - activate(z_of(xhat_of(real, r), r), a);
  const float sign = d > 0.0f ? 1.0f : d < 0.0f ? -1.0f : d;
  if (a.tanh) return {d, sign * (1.0f - y * y), xhat};
  return {d, z <= 0.0f ? sign * a.slope : sign, xhat};
}

__device__ inline const Feature& feature_of(const Table& table, int64_t block) {
  int i = 0;
  while (i + 1 < table.count && table.at[i + 1].first_block <= block) ++i;
  return table.at[i];
}

// In 32 bits: a division in 64 is a call, around which registers are spilled.
__device__ inline Place place_of(const Feature& a, unsigned block) {
  const int t = threadIdx.x;
  Place place;
  block -= static_cast<unsigned>(a.first_block);
  const int column_block = block % a.column_blocks;
  block /= a.column_blocks;
  place.chunk = block % a.chunks;
  place.image = block / a.chunks;
  place.rows = kThreads / a.width;
  place.column = column_block * a.width + t % a.width;
  place.idle = t >= place.rows * a.width || place.column >= a.columns;
  place.item = place.chunk * a.chunk_items + t / a.width;
  place.last = min(a.items, (place.chunk + 1) * a.chunk_items);
  return place;
}

// Sums of each channel over the rows of the block, written to [channels].
template <int V>
__device__ inline void write_sums(const float (&sums)[V], const Feature& a, const Place& place,
                                  float* to) {
  __shared__ float shared[kThreads * 8];
  const int t = threadIdx.x;
  if (a.channels == 1) {
    float sum = 0.0f;
#pragma unroll
    for (int v = 0; v < V; ++v) sum += sums[v];
    sum = block_sum(sum);
    if (t == 0) *to = sum;
    return;
  }
  __syncthreads();
#pragma unroll
  for (int v = 0; v < V; ++v) shared[t * V + v] = sums[v];
  __syncthreads();
  const int first = place.column - t % a.width;  // the block's first column
  const int lanes = a.width * V;
  for (int lane = t; lane < lanes; lane += kThreads) {
    float total = 0.0f;
    for (int row = 0; row < place.rows; ++row) total += shared[row * lanes + lane];
    if (first * V + lane < a.channels) to[first * V + lane] = total;
  }
}

template <typename T, int V>
__device__ inline void measure(const Feature& a, float* distances, float* partials) {
  const Place place = place_of(a, blockIdx.x);
  Channel f[V], r[V];
  float distance = 0.0f, sums[V] = {}, dots[V] = {};
  if (!place.idle) {
#pragma unroll
    for (int v = 0; v < V; ++v) {
      const int channel = a.channels == 1 ? 0 : place.column * V + v;
      f[v] = channel_of(a.f, a, place, channel);
      r[v] = channel_of(a.r, a, place, channel);
    }
    for (int64_t item = place.item; item < place.last; item += place.rows) {
      const int64_t index = (place.image * a.items + item) * a.columns + place.column;
      const auto fake = load<T, V>(a.fake, index), real = load<T, V>(a.real, index);
#pragma unroll
      for (int v = 0; v < V; ++v) {
        const auto found = compare(to_float(fake.at[v]), to_float(real.at[v]), f[v], r[v], a);
        distance += fabsf(found.d);
        sums[v] += found.g;
        dots[v] += found.g * found.xhat;
      }
    }
  }
  const float total = block_sum(distance);
  if (threadIdx.x == 0) distances[blockIdx.x] = total;
  if (a.summed) {
    float* to =
        partials + a.first_partial + (place.image * a.chunks + place.chunk) * 2 * a.channels;
    write_sums(sums, a, place, to);
    write_sums(dots, a, place, to + a.channels);
  }
}

// One block of a multiprocessor is asked for: left to itself the compiler spills for a second one.
// distances: [blocks]; partials: for each feature with sums [images, chunks, 2, channels].
template <typename T>
__global__ void __launch_bounds__(kThreads, 1)
    measure_features(const __grid_constant__ Table table, float* distances, float* partials) {
  const Feature& a = feature_of(table, blockIdx.x);
  if (a.vector == 1) {
    measure<T, 1>(a, distances, partials);
  } else {
    measure<T, kVector<T>>(a, distances, partials);
  }
}

// The last block adds the distances up; the others take the means, [2, images, channels] each.
__global__ void __launch_bounds__(kThreads, 1)
    combine_features(const __grid_constant__ Table table, const float* distances,
                     const float* partials, float* loss, float* sums, bool first) {
  const int t = threadIdx.x;
  if (blockIdx.x + 1 == gridDim.x) {
    double sum = 0.0;
    for (int i = 0; i < table.count; ++i) {
      const int64_t end = i + 1 < table.count ? table.at[i + 1].first_block : table.blocks;
      double part = 0.0;
      for (int64_t b = table.at[i].first_block + t; b < end; b += kThreads) part += distances[b];
      sum += part * table.at[i].scale;
    }
    sum = block_sum(sum);
    if (t == 0) *loss = (first ? 0.0f : *loss) + static_cast<float>(sum);
    return;
  }
  const int64_t at = static_cast<int64_t>(blockIdx.x) * kThreads + t;
  if (at >= table.sums) return;
  int i = 0;
  while (i + 1 < table.count && table.at[i + 1].first_sum <= at) ++i;
  const Feature& a = table.at[i];
  const int64_t channel = (at - a.first_sum) % a.channels;
  const int64_t row = (at - a.first_sum) / a.channels;
  const float* from = partials + a.first_partial + row % a.images * a.chunks * 2 * a.channels;
  double total = 0.0;
  for (int chunk = 0; chunk < a.chunks; ++chunk) {
    total += from[(chunk * 2 + row / a.images) * a.channels + channel];
  }
  sums[at] = static_cast<float>(total / a.pixels);
}

template <typename T, int V>
__device__ inline void differentiate(const Feature& a, float scale, const float* sums) {
  const Place place = place_of(a, blockIdx.x);
  if (place.idle) return;
  Channel f[V], r[V];
  float mean_g[V], mean_dot[V], factor[V];
#pragma unroll
  for (int v = 0; v < V; ++v) {
    const int channel = a.channels == 1 ? 0 : place.column * V + v;
    const int64_t at = place.image * a.channels + channel;
    f[v] = channel_of(a.f, a, place, channel);
    r[v] = channel_of(a.r, a, place, channel);
    mean_g[v] = a.summed ? sums[a.first_sum + at] : 0.0f;
    mean_dot[v] = a.summed ? sums[a.first_sum + a.images * a.channels + at] : 0.0f;
    factor[v] = scale * f[v].gamma * f[v].rstd;
  }
  for (int64_t item = place.item; item < place.last; item += place.rows) {
    const int64_t index = (place.image * a.items + item) * a.columns + place.column;
    const auto fake = load<T, V>(a.fake, index), real = load<T, V>(a.real, index);
    Pack<T, V> dx;
#pragma unroll
    for (int v = 0; v < V; ++v) {
      const auto found = compare(to_float(fake.at[v]), to_float(real.at[v]), f[v], r[v], a);
      from_float(factor[v] * (found.g - mean_g[v] - found.xhat * mean_dot[v]), dx.at[v]);
    }
    reinterpret_cast<Pack<T, V>*>(a.dx)[index] = dx;
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads, 1)
    differentiate_features(const __grid_constant__ Table table, const float* dloss,
                           const float* sums) {
  const Feature& a = feature_of(table, blockIdx.x);
  if (a.vector == 1) {
    differentiate<T, 1>(a, *dloss * a.scale, sums);
  } else {
    differentiate<T, kVector<T>>(a, *dloss * a.scale, sums);
  }
}

// The launches want a planned table. A table without blocks, all of its features empty, only sets
// the loss. `first`: the loss is set, not added to.
template <typename T>
[[nodiscard]] cudaError_t launch_feature_matching_loss(const Table& table, float* distances,
                                                       float* partials, float* loss, float* sums,
                                                       bool first, cudaStream_t stream) {
  if (table.blocks > INT32_MAX) return cudaErrorInvalidValue;
  const dim3 block(kThreads);
  if (table.blocks > 0) {
    const dim3 grid(static_cast<unsigned>(table.blocks));
    const cudaError_t error =
        launch(measure_features<T>, grid, block, 0, stream, table, distances, partials);
    if (error != cudaSuccess) return error;
  }
  const dim3 grid(static_cast<unsigned>(ceil_div(table.sums, kThreads) + 1));
  return launch(combine_features, grid, block, 0, stream, table, distances, partials, loss, sums,
                first);
}

template <typename T>
[[nodiscard]] cudaError_t launch_feature_matching_gradient(const Table& table, const float* dloss,
                                                           const float* sums, cudaStream_t stream) {
  if (table.blocks > INT32_MAX) return cudaErrorInvalidValue;
  if (table.blocks == 0) return cudaSuccess;
  const dim3 grid(static_cast<unsigned>(table.blocks));
  return launch(differentiate_features<T>, grid, dim3(kThreads), 0, stream, table, dloss, sums);
}

}  // namespace pix2pixhd_fast
