#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>

namespace {

// What a call of instance_mean_pool is given, checked and made dense: features in channels_last
// (`last`) or contiguous, ids contiguous. The result has the format of `features`.
struct PoolProblem {
  using MemoryFormat = torch::headeronly::MemoryFormat;
  using ScalarType = torch::headeronly::ScalarType;
  using Tensor = torch::stable::Tensor;

  bool last;
  Tensor features, ids;

  PoolProblem(const Tensor& given, const Tensor& given_ids)
      : last(checked(given, given_ids)),
        features(torch::stable::contiguous(
            given, last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous)),
        ids(torch::stable::contiguous(given_ids)) {}

 private:
  // Whether features are dense in channels_last and not in the default format.
  static bool checked(const Tensor& x, const Tensor& ids) {
    STD_TORCH_CHECK(x.dim() == 4 && ids.dim() == 4 && ids.size(1) == 1 &&
                        ids.size(0) == x.size(0) && ids.size(2) == x.size(2) &&
                        ids.size(3) == x.size(3),
                    "instance_mean_pool: ids must be [N, 1, H, W] of features [N, C, H, W]");
    const ScalarType type = ids.scalar_type();
    STD_TORCH_CHECK(type == ScalarType::Int || type == ScalarType::Long,
                    "instance_mean_pool: ids must be int32 or int64");
    int64_t stride = 1;
    for (const int64_t dim : {1, 3, 2, 0}) {
      if (x.size(dim) > 1 && x.stride(dim) != stride) return false;
      stride *= x.size(dim);
    }
    return !x.is_contiguous();
  }
};

}  // namespace
