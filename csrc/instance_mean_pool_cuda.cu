#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "instance_mean_pool.cuh"

namespace {

using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

template <typename Id, typename T>
void start(const Tensor& features, const Tensor& ids, Tensor& pooled, bool last) {
  const pix2pixhd_fast::PoolShape shape{features.size(0), features.size(1),
                                        features.size(2) * features.size(3), last};
  Tensor memory =
      torch::stable::new_empty(ids, {pix2pixhd_fast::scratch_bytes(shape)}, ScalarType::Byte);
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(
      aoti_torch_get_current_cuda_stream(ids.get_device_index(), &stream));
  STD_CUDA_CHECK(pix2pixhd_fast::launch_instance_mean_pool(
      static_cast<const Id*>(ids.const_data_ptr()),
      static_cast<const T*>(features.const_data_ptr()), static_cast<T*>(pooled.mutable_data_ptr()),
      static_cast<char*>(memory.mutable_data_ptr()), shape, static_cast<cudaStream_t>(stream)));
}

template <typename T>
void start_for(const Tensor& features, const Tensor& ids, Tensor& pooled, bool last) {
  if (ids.scalar_type() == ScalarType::Int) return start<int32_t, T>(features, ids, pooled, last);
  start<int64_t, T>(features, ids, pooled, last);
}

// Dense in that format and not in the default one.
bool is_channels_last(const Tensor& x) {
  int64_t stride = 1;
  for (const int64_t dim : {1, 3, 2, 0}) {
    if (x.size(dim) > 1 && x.stride(dim) != stride) return false;
    stride *= x.size(dim);
  }
  return !x.is_contiguous();
}

Tensor instance_mean_pool_cuda(const Tensor& given, const Tensor& given_ids) {
  const auto type = given.scalar_type(), id_type = given_ids.scalar_type();
  STD_TORCH_CHECK(given.dim() == 4 && given_ids.dim() == 4 && given_ids.size(1) == 1 &&
                      given_ids.size(0) == given.size(0) && given_ids.size(2) == given.size(2) &&
                      given_ids.size(3) == given.size(3),
                  "instance_mean_pool: ids must be [N, 1, H, W] of features [N, C, H, W]");
  STD_TORCH_CHECK(given.get_device_index() == given_ids.get_device_index(),
                  "instance_mean_pool: ids must be on the device of features");
  STD_TORCH_CHECK(id_type == ScalarType::Int || id_type == ScalarType::Long,
                  "instance_mean_pool: ids must be int32 or int64");
  const torch::stable::accelerator::DeviceGuard guard(given.get_device_index());
  const bool last = is_channels_last(given);
  const MemoryFormat format = last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous;
  const Tensor features = torch::stable::contiguous(given, format);
  const Tensor ids = torch::stable::contiguous(given_ids);
  Tensor pooled = torch::stable::empty_like(features);
  if (features.numel() == 0) return pooled;
  if (type == ScalarType::Float) {
    start_for<float>(features, ids, pooled, last);
  } else if (type == ScalarType::Half) {
    start_for<__half>(features, ids, pooled, last);
  } else {
    STD_TORCH_CHECK(type == ScalarType::BFloat16,
                    "instance_mean_pool: features must be float32, float16 or bfloat16");
    start_for<__nv_bfloat16>(features, ids, pooled, last);
  }
  return pooled;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pix2pixhd_fast, CUDA, m) {
  m.impl("instance_mean_pool", TORCH_BOX(&instance_mean_pool_cuda));
}
