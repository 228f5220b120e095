#pragma once

// Kernels with one mistake each, and the same kernels without it.

#include "launch.cuh"

namespace planted {

using pix2pixhd_fast::dynamic_shared;

constexpr int kThreads = 64;
constexpr unsigned kAll = 0xffffffff;

// out[i] = in[the mirror of i in its block]
template <bool kBarrier>
__global__ void reverse(const int* in, int* out) {
  __shared__ int tile[kThreads];
  const int i = threadIdx.x, base = blockIdx.x * kThreads;
  tile[i] = in[base + i];
  if (kBarrier) {
    __syncthreads();
  }
  out[base + i] = tile[kThreads - 1 - i];
}

// Twice over the same tile: the second filling must wait for the first reading.
template <bool kBarrier>
__global__ void reverse_twice(const int* in, int* out) {
  int* tile = dynamic_shared<int>();
  const int i = threadIdx.x;
  tile[i] = in[i];
  __syncthreads();
  const int first = tile[kThreads - 1 - i];
  if (kBarrier) {
    __syncthreads();
  }
  tile[i] = first + 1;
  __syncthreads();
  out[i] = tile[kThreads - 1 - i];
}

// Neighbours within a warp, through shared memory.
template <bool kBarrier>
__global__ void swap_pairs(const int* in, int* out) {
  __shared__ int tile[kThreads];
  const int i = threadIdx.x;
  tile[i] = in[i];
  if (kBarrier) {
    __syncwarp();
  }
  out[i] = tile[i ^ 1];
}

__global__ void shift(const int* in, int* out, int by) {
  const int i = threadIdx.x;
  out[i] = in[i + by];
}

__global__ void shift_written(const int* in, int* out, int by) {
  const int i = threadIdx.x;
  out[i + by] = in[i];
}

__device__ inline int at(const int* tile, int i) { return tile[i]; }

template <bool kByPointer>
__global__ void shift_shared(const int* in, int* out, int by) {
  __shared__ int tile[kThreads];
  const int i = threadIdx.x;
  tile[i] = in[i];
  __syncthreads();
  out[i] = kByPointer ? at(tile, i + by) : tile[i + by];
}

__global__ void shift_dynamic(const int* in, int* out, int by) {
  int* tile = dynamic_shared<int>();
  const int i = threadIdx.x;
  tile[i] = in[i];
  __syncthreads();
  out[i] = tile[i + by];
}

// 16 bytes from an address that may lie between.
__global__ void copy_vector(const int* in, int* out, int by) {
  reinterpret_cast<int4*>(out)[threadIdx.x] = reinterpret_cast<const int4*>(in + by)[threadIdx.x];
}

// The lanes of the upper half do not take part, or are not expected to.
__global__ void sum_half_warp(const int* in, int* out, unsigned mask) {
  int sum = in[threadIdx.x];
  if (threadIdx.x % 32 < 16) {
    for (int distance = 8; distance > 0; distance /= 2) {
      sum += __shfl_xor_sync(mask, sum, distance);
    }
  }
  out[threadIdx.x] = sum;
}

__global__ void pass_up(const int* in, int* out, unsigned mask) {
  out[threadIdx.x] = __shfl_up_sync(mask, in[threadIdx.x], 1);
}

__global__ void pass_to_first(const int* in, int* out, int source) {
  int value = in[threadIdx.x];
  if (threadIdx.x % 32 < 16) {
    value = __shfl_sync(0x0000ffff, value, source);
  }
  out[threadIdx.x] = value;
}

// Fills `filled` places of the tile and reads them all.
__global__ void fill_and_sum(const int* in, int* out, int filled) {
  __shared__ int tile[kThreads];
  const int i = threadIdx.x;
  if (i < filled) {
    tile[i] = in[i];
  }
  __syncthreads();
  int sum = 0;
  for (int j = 0; j < kThreads; ++j) {
    sum += tile[j];
  }
  out[i] = sum;
}

// Threads from `leaving` on end before the barrier.
__global__ void leave_early(const int* in, int* out, int leaving) {
  out[threadIdx.x] = in[threadIdx.x];
  if (static_cast<int>(threadIdx.x) >= leaving) {
    return;
  }
  __syncthreads();
}

template <bool kOneBarrier>
__global__ void two_branches(const int* in, int* out) {
  if (kOneBarrier || threadIdx.x < 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
  out[threadIdx.x] = in[threadIdx.x];
}

// All blocks count the positive numbers.
template <bool kAtomic>
__global__ void count_positive(const int* in, int* out) {
  if (in[blockIdx.x * kThreads + threadIdx.x] > 0) {
    if (kAtomic) {
      atomicAdd(out, 1);
    } else {
      *out += 1;
    }
  }
}

// Each block writes its number; `blocks_share`: all to the same place.
__global__ void number_block(const int* in, int* out, int blocks_share) {
  if (threadIdx.x == 0) {
    out[blocks_share ? 0 : blockIdx.x] = in[blockIdx.x];
  }
}

// By a call of memcpy: the compiler does not know the size.
__global__ void copy_bytes(const int* in, int* out, int bytes) {
  if (threadIdx.x == 0) {
    memcpy(out, in, bytes);
  }
}

template <bool kGuard>
__global__ void write_in(int* in, int* out) {
  if (!kGuard) {
    in[threadIdx.x] = 0;
  }
  out[threadIdx.x] = in[threadIdx.x];
}

__global__ void overflow(const int* in, int* out, int by) {
  out[threadIdx.x] = (in[threadIdx.x] + by) * 65536;
}

__global__ void shift_bits(const int* in, int* out, int by) {
  out[threadIdx.x] = in[threadIdx.x] >> (threadIdx.x % 16 + by);
}

__global__ void write_some(const int* in, int* out, int count) {
  if (static_cast<int>(threadIdx.x) < count) {
    out[threadIdx.x] = in[threadIdx.x];
  }
}

}  // namespace planted
