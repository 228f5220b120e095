// One warp or block calls every intrinsic of the model; test_cuda_on_cpu.py knows the answers.

#include "launch.cuh"

namespace {

constexpr unsigned kAll = 0xffffffff;

// out: [12, 32], a row per intrinsic
__global__ void warp_intrinsics(int* out) {
  const int lane = threadIdx.x;
  const unsigned half = lane < 16 ? 0x0000ffff : 0xffff0000;
  out[0 * 32 + lane] = __shfl_sync(kAll, lane, 5);
  out[1 * 32 + lane] = __shfl_sync(kAll, lane, 9, 8);
  out[2 * 32 + lane] = __shfl_up_sync(kAll, lane, 3, 16);
  out[3 * 32 + lane] = __shfl_down_sync(half, lane, 3, 16);
  out[4 * 32 + lane] = __shfl_xor_sync(kAll, lane, 5);
  out[5 * 32 + lane] = __popc(__ballot_sync(half, lane % 3 == 0));
  out[6 * 32 + lane] = __any_sync(kAll, lane == 31);
  out[7 * 32 + lane] = __all_sync(half, lane < 16);
  out[8 * 32 + lane] = __activemask() >> lane & 1;
  out[9 * 32 + lane] = __ffs(lane) * 100 + __clz(lane);
  out[10 * 32 + lane] = static_cast<int>(__shfl_down_sync(kAll, 1.5 * lane, 1));
  out[11 * 32 + lane] = __float2int_rn(0.5f * lane) + max(lane, 30) - min(lane, 2u);
}

// out: [7]
__global__ void block_intrinsics(int* out) {
  const int i = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
  if (i == 0) {
    out[0] = 0;
    out[1] = out[4] = -1;
    out[2] = 1 << 20;
    out[3] = 0;
    out[5] = 0xff;
  }
  __syncthreads();
  atomicAdd(&out[0], i);
  atomicMax(&out[1], i);
  atomicMin(&out[2], i + 7);
  atomicOr(&out[3], 1 << i % 8);
  atomicCAS(&out[4], -1, 77);
  atomicAnd(&out[5], ~(1 << i % 4));
  const int count = __syncthreads_count(i % 2);
  const int votes = __syncthreads_and(i < 96) + 2 * __syncthreads_or(i == 95);
  if (i == 0) {
    out[6] = count * 10 + votes;
  }
}

// x, y: [8]. y = x rounded to T, doubled, with the arithmetic and the vectors of NVIDIA's headers.
template <typename T>
__device__ float twice(float x) {
  const T rounded = T(x);
  return static_cast<float>(rounded + rounded);
}

template <typename T>
__global__ void double_rounded(const float* x, float* y) {
  const float4 given = __ldg(reinterpret_cast<const float4*>(x) + threadIdx.x);
  reinterpret_cast<float4*>(y)[threadIdx.x] =
      make_float4(twice<T>(given.x), twice<T>(given.y), twice<T>(given.z), twice<T>(given.w));
}

// order: [grid] of the linear index of each block, found from its three indices.
__global__ void number_blocks(int* order) {
  const int i = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
  order[i] = i;
}

}  // namespace

extern "C" int warp_values(int* out) {
  return pix2pixhd_fast::launch(warp_intrinsics, 1, 32, 0, nullptr, out);
}

extern "C" int block_values(int* out) {
  return pix2pixhd_fast::launch(block_intrinsics, 1, dim3(4, 8, 3), 0, nullptr, out);
}

extern "C" int twice_rounded(const float* x, float* y, int64_t bfloat16) {
  const auto kernel = bfloat16 ? double_rounded<__nv_bfloat16> : double_rounded<__half>;
  return pix2pixhd_fast::launch(kernel, 1, 2, 0, nullptr, x, y);
}

extern "C" int block_numbers(int* order) {
  return pix2pixhd_fast::launch(number_blocks, dim3(3, 5, 2), 1, 0, nullptr, order);
}
