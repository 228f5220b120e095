#pragma once

// Of instance_mean_pool: its sizes and working memory, how numbers are read and written, and the
// hash table that says which pixel is the owner of an instance.

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "launch.cuh"

namespace pix2pixhd_fast {

constexpr int kPoolWarps = 4;  // of a block
constexpr int kSteps = 4;      // times 32 pixels that a warp writes
constexpr int kStrip = 512;    // pixels that a warp sums: 4096 warps for 2048x1024
constexpr int kGroup = 4;      // channels of a warp
constexpr unsigned kAllLanes = 0xffffffff;
constexpr unsigned kInfinity = 0x7f800000;

struct Record {
  int owner;
  int area;
  float sums[kGroup];
};

// `last`: a pixel's channels lie next to each other.
struct PoolShape {
  int64_t images, channels, pixels;
  bool last;

  __host__ __device__ int64_t groups() const { return (channels + kGroup - 1) / kGroup; }
  __host__ __device__ int64_t strips() const { return (pixels + kStrip - 1) / kStrip; }
  // Entries of the hash table of an image: at most 4/5 full, a whole number of int4.
  __host__ __device__ int64_t entries() const { return (pixels + pixels / 4 + 4) / 4 * 4; }
  __host__ __device__ int64_t at(int64_t image, int64_t pixel, int64_t channel) const {
    const int64_t first = image * channels * pixels;
    return first + (last ? pixel * channels + channel : channel * pixels + pixel);
  }
};

// The working memory: sums, peaks and areas by owner, table and records.
struct Scratch {
  unsigned long long* sums;  // [N, P, C], fixed-point
  Record* records;           // [groups, N, strips, kStrip]
  int* table;                // [N, entries]: pixel + 1, or 0
  unsigned* peaks;           // [N, P, C], bits of the largest |sum| of a record
  int* areas;                // [N, P]
  int* counts;               // [groups, N, strips], records of a strip
};

inline int64_t scratch_bytes(const PoolShape& s) {
  const int64_t strips = s.groups() * s.strips();
  const int64_t records = strips * (kStrip * static_cast<int64_t>(sizeof(Record)) + 4);
  return s.images * (4 * s.entries() + s.pixels * (4 + 12 * s.channels) + records);
}

// `memory` lies on 16 bytes.
inline Scratch scratch_in(char* memory, const PoolShape& s) {
  const int64_t owners = s.images * s.pixels;
  const auto take = [&](int64_t bytes) {
    char* taken = memory;
    memory += bytes;
    return static_cast<void*>(taken);
  };
  Scratch scratch;
  scratch.table = static_cast<int*>(take(4 * s.images * s.entries()));
  scratch.sums = static_cast<unsigned long long*>(take(8 * owners * s.channels));
  scratch.records = static_cast<Record*>(
      take(s.groups() * s.images * s.strips() * kStrip * static_cast<int64_t>(sizeof(Record))));
  scratch.peaks = static_cast<unsigned*>(take(4 * owners * s.channels));
  scratch.areas = static_cast<int*>(take(4 * owners));
  scratch.counts = static_cast<int*>(take(4 * s.groups() * s.images * s.strips()));
  return scratch;
}

__device__ inline float read(const float* x) { return __ldg(x); }
__device__ inline float read(const __half* x) { return __half2float(*x); }
__device__ inline float read(const __nv_bfloat16* x) { return __bfloat162float(*x); }
__device__ inline void write(float value, float* y) { *y = value; }
__device__ inline void write(float value, __half* y) { *y = __float2half_rn(value); }
__device__ inline void write(float value, __nv_bfloat16* y) { *y = __float2bfloat16_rn(value); }

template <typename Id>
__device__ inline int64_t first_entry(Id id, int64_t entries) {
  const uint64_t mixed = static_cast<uint64_t>(id) * 0x9e3779b97f4a7c15ull;
  return static_cast<int64_t>((mixed >> 32) * static_cast<uint64_t>(entries) >> 32);
}

// The owner of the id of `pixel`, which becomes it where there is none. ids, table: of the image.
template <typename Id>
__device__ inline int claim(const Id* ids, int* table, int64_t entries, int pixel, bool& is_new) {
  const Id id = __ldg(ids + pixel);
  for (int64_t at = first_entry(id, entries);; at = at + 1 == entries ? 0 : at + 1) {
    const int found = atomicCAS(table + at, 0, pixel + 1);
    is_new = found == 0;
    if (is_new) return pixel;
    if (__ldg(ids + found - 1) == id) return found - 1;
  }
}

template <typename Id>
__device__ inline int owner_of(const Id* ids, const int* table, int64_t entries, Id id) {
  for (int64_t at = first_entry(id, entries);; at = at + 1 == entries ? 0 : at + 1) {
    const int owner = __ldg(table + at) - 1;
    if (__ldg(ids + owner) == id) return owner;
  }
}

__global__ void __launch_bounds__(256) clear_table(int4* table, int64_t count) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count;
       i += step) {
    table[i] = make_int4(0, 0, 0, 0);
  }
}

}  // namespace pix2pixhd_fast
