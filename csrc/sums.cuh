#pragma once

// What device code that sums values of any dtype needs: conversions, and the sum over a block.

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "launch.cuh"

namespace pix2pixhd_fast {

constexpr int kThreads = 128;  // of a block: three fit beside 144 registers of a thread

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

__device__ inline float to_float(float x) { return x; }
__device__ inline float to_float(__half x) { return __half2float(x); }
__device__ inline float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ inline void from_float(float x, float& to) { to = x; }
__device__ inline void from_float(float x, __half& to) { to = __float2half_rn(x); }
__device__ inline void from_float(float x, __nv_bfloat16& to) { to = __float2bfloat16_rn(x); }

// The sum over the block, for thread 0.
template <typename Sum>
__device__ inline Sum block_sum(Sum value) {
  __shared__ Sum warps[kThreads / 32];
  const int t = threadIdx.x;
#pragma unroll
  for (int step = 16; step > 0; step /= 2) value += __shfl_down_sync(0xffffffff, value, step);
  __syncthreads();  // the sums of the call before have been read
  if (t % 32 == 0) warps[t / 32] = value;
  __syncthreads();
  Sum total = 0;
  for (int i = 0; t == 0 && i < kThreads / 32; ++i) total += warps[i];
  return total;
}

}  // namespace pix2pixhd_fast
