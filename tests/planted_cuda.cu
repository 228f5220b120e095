// What the compile matrix must find in a translation unit, as csrc/<op>_cuda.cu.

#include "planted.cuh"

namespace {

__global__ void __launch_bounds__(256) sound(const float4* x, float4* y) {
  y[threadIdx.x] = scaled(x[threadIdx.x]);
}

// A local array with an index that only the running kernel knows lies in memory.
__global__ void __launch_bounds__(64) spilling(const int* index, int* y) {
  int values[128];
  for (int i = 0; i < 128; ++i) {
    values[i] = index[i] * i;
  }
  for (int i = 0; i < 128; ++i) {
    values[index[i + threadIdx.x] & 127] += values[index[i] & 127];
  }
  y[threadIdx.x] = values[index[threadIdx.x] & 127];
}

__global__ void __launch_bounds__(128) sharing(float* y) {
  __shared__ float values[200];
  values[threadIdx.x] = y[threadIdx.x];
  __syncthreads();
  y[threadIdx.x] = values[threadIdx.x ^ 1];
}

}  // namespace

void launch(const float4* x, float4* y, const int* index, int* z, float* w) {
  sound<<<1, 256>>>(x, y);
  spilling<<<1, 64>>>(index, z);
  sharing<<<1, 128>>>(w);
}
