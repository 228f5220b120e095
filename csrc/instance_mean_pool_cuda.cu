#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "instance_mean_pool.cuh"
#include "instance_pool_problem.h"

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

template <typename Id, typename T>
void start(const PoolProblem& given, Tensor& pooled) {
  const Tensor& x = given.features;
  const pix2pixhd_fast::PoolShape shape{x.size(0), x.size(1), x.size(2) * x.size(3), given.last};
  Tensor memory =
      torch::stable::new_empty(given.ids, {pix2pixhd_fast::scratch_bytes(shape)}, ScalarType::Byte);
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(x.get_device_index(), &stream));
  STD_CUDA_CHECK(pix2pixhd_fast::launch_instance_mean_pool(
      static_cast<const Id*>(given.ids.const_data_ptr()), static_cast<const T*>(x.const_data_ptr()),
      static_cast<T*>(pooled.mutable_data_ptr()), static_cast<char*>(memory.mutable_data_ptr()),
      shape, static_cast<cudaStream_t>(stream)));
}

template <typename T>
void start_for(const PoolProblem& given, Tensor& pooled) {
  if (given.ids.scalar_type() == ScalarType::Int) return start<int32_t, T>(given, pooled);
  start<int64_t, T>(given, pooled);
}

Tensor instance_mean_pool_cuda(const Tensor& features, const Tensor& ids) {
  STD_TORCH_CHECK(features.get_device_index() == ids.get_device_index(),
                  "instance_mean_pool: ids must be on the device of features");
  const torch::stable::accelerator::DeviceGuard guard(features.get_device_index());
  const PoolProblem given(features, ids);
  Tensor pooled = torch::stable::empty_like(given.features);
  if (pooled.numel() == 0) return pooled;
  const ScalarType type = features.scalar_type();
  if (type == ScalarType::Float) {
    start_for<float>(given, pooled);
  } else if (type == ScalarType::Half) {
    start_for<__half>(given, pooled);
  } else {
    STD_TORCH_CHECK(type == ScalarType::BFloat16,
                    "instance_mean_pool: features must be float32, float16 or bfloat16");
    start_for<__nv_bfloat16>(given, pooled);
  }
  return pooled;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pix2pixhd_fast, CUDA, m) {
  m.impl("instance_mean_pool", TORCH_BOX(&instance_mean_pool_cuda));
}
