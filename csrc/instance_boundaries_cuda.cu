#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "instance_boundaries.cuh"

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

template <typename Id>
void start(const Tensor& ids, Tensor& edges, cudaStream_t stream) {
  STD_CUDA_CHECK(pix2pixhd_fast::launch_instance_boundaries(
      ids.const_data_ptr<Id>(), edges.mutable_data_ptr<uint8_t>(), ids.size(0), ids.size(2),
      ids.size(3), stream));
}

Tensor instance_boundaries_cuda(const Tensor& given) {
  const auto type = given.scalar_type();
  STD_TORCH_CHECK(type == ScalarType::Int || type == ScalarType::Long,
                  "instance_boundaries: ids must be int32 or int64");
  STD_TORCH_CHECK(given.dim() == 4 && given.size(1) == 1,
                  "instance_boundaries: ids must be [N, 1, H, W]");
  const torch::stable::accelerator::DeviceGuard guard(given.get_device_index());
  const Tensor ids = torch::stable::contiguous(given);
  Tensor edges = torch::stable::new_empty(ids, ids.sizes(), ScalarType::Byte);
  if (ids.numel() == 0) {
    return edges;
  }
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(
      aoti_torch_get_current_cuda_stream(ids.get_device_index(), &stream));
  if (type == ScalarType::Int) {
    start<int32_t>(ids, edges, static_cast<cudaStream_t>(stream));
  } else {
    start<int64_t>(ids, edges, static_cast<cudaStream_t>(stream));
  }
  return edges;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pix2pixhd_fast, CUDA, m) {
  m.impl("instance_boundaries", TORCH_BOX(&instance_boundaries_cuda));
}
