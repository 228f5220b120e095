#pragma once

// How host code starts a kernel, and the one place where a kernel gets its dynamic shared memory.
// nvcc compiles both for the GPU; any other compiler gets the execution model of
// tests/cuda_on_cpu, where the same launcher runs the same kernel on the CPU.

#ifdef __CUDACC__
#include <cuda_runtime.h>
#else
#include <cuda_on_cpu.h>
#endif

#include <cstddef>

namespace pix2pixhd_fast {

// Starts `kernel` and returns the error of the launch; arguments convert as in a call.
template <typename... Parameters, typename... Arguments>
[[nodiscard]] cudaError_t launch(void (*kernel)(Parameters...), dim3 grid, dim3 block,
                                 size_t shared_bytes, cudaStream_t stream, Arguments... arguments) {
#ifdef __CUDACC__
  // More than 48 KiB must be asked for.
  if (shared_bytes > 48 * 1024) {
    const cudaError_t error = cudaFuncSetAttribute(
        kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes));
    if (error != cudaSuccess) {
      return error;
    }
  }
  kernel<<<grid, block, shared_bytes, stream>>>(static_cast<Parameters>(arguments)...);
  return cudaGetLastError();
#else
  static_cast<void>(stream);
  return cuda_on_cpu::launch(kernel, grid, block, shared_bytes,
                             static_cast<Parameters>(arguments)...);
#endif
}

// The dynamic shared memory of the block, on 16 bytes: `extern __shared__` with any type.
template <typename T>
__device__ inline T* dynamic_shared() {
#ifdef __CUDACC__
  extern __shared__ __align__(16) unsigned char pix2pixhd_fast_dynamic_shared[];
  return reinterpret_cast<T*>(pix2pixhd_fast_dynamic_shared);
#else
  return static_cast<T*>(cuda_on_cpu::dynamic_shared());
#endif
}

}  // namespace pix2pixhd_fast
