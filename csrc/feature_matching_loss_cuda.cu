#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <string>
#include <tuple>
#include <vector>

#include "feature_matching_loss.cuh"

namespace {

using pix2pixhd_fast::Feature;
using pix2pixhd_fast::kMostFeatures;
using pix2pixhd_fast::Side;
using pix2pixhd_fast::Table;
using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Tensors = std::vector<Tensor>;

// As the format of results of the other ops: channels_last where the channels of x lie next to each
// other and x is not contiguous as well.
MemoryFormat format_of(const Tensor& x) {
  STD_TORCH_CHECK(x.dim() == 4, "feature_matching_loss: features must be [N, C, H, W]");
  const bool last = !x.is_contiguous() && x.size(1) > 1 && x.stride(1) == 1;
  return last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous;
}

const float* floats(const Tensor& t) { return static_cast<const float*>(t.const_data_ptr()); }

// The features as the kernels read them; what had to be copied lives as long as this does.
struct Features {
  Tensors kept;
  std::vector<Table> tables;

  // mean, rstd, gamma and beta; an empty tensor stands for none.
  Side side_of(const Tensor* norm) {
    const float* found[4] = {};
    for (int k = 0; k < 4; ++k) {
      if (norm[k].numel() == 0) continue;
      const Tensor t = torch::stable::to(norm[k], ScalarType::Float);
      found[k] = floats(kept.emplace_back(torch::stable::contiguous(t)));
    }
    return {found[0], found[1], found[2], found[3]};
  }

  Feature feature_of(const Tensor& fake, const Tensor& real, const Tensor* fake_norm,
                     const Tensor* real_norm, const std::string& act, double slope, double weight) {
    STD_TORCH_CHECK(real.scalar_type() == fake.scalar_type() && real.dim() == 4 &&
                        real.size(0) == fake.size(0) && real.size(1) == fake.size(1) &&
                        real.size(2) == fake.size(2) && real.size(3) == fake.size(3),
                    "feature_matching_loss: real does not match fake");
    const MemoryFormat format = format_of(fake);
    Feature a{};
    a.fake = kept.emplace_back(torch::stable::contiguous(fake, format)).const_data_ptr();
    a.real = kept.emplace_back(torch::stable::contiguous(real, format)).const_data_ptr();
    a.f = side_of(fake_norm);
    a.r = side_of(real_norm);
    a.summed = a.f.mean || a.f.rstd || a.f.gamma || a.f.beta;
    const bool plain = !a.summed && !(a.r.mean || a.r.rstd || a.r.gamma || a.r.beta);
    const bool last = format == MemoryFormat::ChannelsLast;
    a.images = plain ? (fake.numel() > 0) : last ? fake.size(0) : fake.size(0) * fake.size(1);
    a.pixels = plain ? fake.numel() : fake.size(2) * fake.size(3);
    a.channels = plain || !last ? 1 : static_cast<int>(fake.size(1));
    a.affine = static_cast<int>(fake.size(1));
    a.scale = static_cast<float>(weight / static_cast<double>(fake.numel()));
    a.slope = act == "none" ? 1.0f : act == "relu" ? 0.0f : static_cast<float>(slope);
    a.tanh = act == "tanh";
    return a;
  }

  Features(const Tensors& fake, const Tensors& real, const Tensors& fake_norms,
           const Tensors& real_norms, const std::vector<std::string>& acts,
           const std::vector<double>& slopes, const std::vector<double>& weights,
           const Tensors* dx) {
    const size_t n = fake.size();
    STD_TORCH_CHECK(n > 0 && real.size() == n && acts.size() == n && slopes.size() == n &&
                        weights.size() == n && fake_norms.size() == 4 * n &&
                        real_norms.size() == 4 * n,
                    "feature_matching_loss: lists of different lengths");
    for (size_t i = 0; i < n; ++i) {
      STD_TORCH_CHECK(fake[i].scalar_type() == fake[0].scalar_type(),
                      "feature_matching_loss: features of different dtypes");
      if (i % kMostFeatures == 0) tables.emplace_back();
      Table& table = tables.back();
      Feature& a = table.at[table.count++] = feature_of(
          fake[i], real[i], &fake_norms[4 * i], &real_norms[4 * i], acts[i], slopes[i], weights[i]);
      if (dx) a.dx = (*dx)[i].mutable_data_ptr();
    }
  }
};

// Calls body.operator()<T>() for the type of the values of x.
template <typename Body>
void with_type(const Tensor& x, Body body) {
  const ScalarType type = x.scalar_type();
  if (type == ScalarType::Float) return body.template operator()<float>();
  if (type == ScalarType::Half) return body.template operator()<__half>();
  STD_TORCH_CHECK(type == ScalarType::BFloat16, "feature_matching_loss: unsupported dtype");
  body.template operator()<__nv_bfloat16>();
}

cudaStream_t stream_of(const Tensor& x) {
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(x.get_device_index(), &stream));
  return static_cast<cudaStream_t>(stream);
}

Tensor new_floats(const Tensor& like, int64_t size) {
  return torch::stable::new_empty(like, {size}, ScalarType::Float);
}

std::tuple<Tensor, Tensor> feature_matching_loss_forward_cuda(
    Tensors fake, Tensors real, Tensors fake_norms, Tensors real_norms,
    std::vector<std::string> acts, std::vector<double> slopes, std::vector<double> weights) {
  const torch::stable::accelerator::DeviceGuard guard(fake.at(0).get_device_index());
  Features features(fake, real, fake_norms, real_norms, acts, slopes, weights, nullptr);
  const cudaStream_t stream = stream_of(fake[0]);
  Tensor loss = torch::stable::new_empty(fake[0], {}, ScalarType::Float), sums;
  with_type(fake[0], [&]<typename T>() {
    int64_t size = 0, done = 0;
    for (Table& table : features.tables) pix2pixhd_fast::plan<T>(table), size += table.sums;
    sums = new_floats(fake[0], size);
    auto* to = static_cast<float*>(sums.mutable_data_ptr());
    for (const Table& table : features.tables) {
      Tensor parts = new_floats(fake[0], table.blocks + table.partials);
      auto* distances = static_cast<float*>(parts.mutable_data_ptr());
      STD_CUDA_CHECK(pix2pixhd_fast::launch_feature_matching_loss<T>(
          table, distances, distances + table.blocks, static_cast<float*>(loss.mutable_data_ptr()),
          to + done, &table == &features.tables[0], stream));
      done += table.sums;
    }
  });
  return {loss, sums};
}

Tensors feature_matching_loss_backward_cuda(const Tensor& dloss, Tensors fake, Tensors real,
                                            Tensors fake_norms, Tensors real_norms,
                                            const Tensor& given_sums, std::vector<std::string> acts,
                                            std::vector<double> slopes,
                                            std::vector<double> weights) {
  const torch::stable::accelerator::DeviceGuard guard(fake.at(0).get_device_index());
  Tensors found;
  for (const Tensor& x : fake) {
    found.push_back(torch::stable::empty({x.size(0), x.size(1), x.size(2), x.size(3)},
                                         x.scalar_type(), std::nullopt, x.device(), std::nullopt,
                                         format_of(x)));
  }
  Features features(fake, real, fake_norms, real_norms, acts, slopes, weights, &found);
  const Tensor dtotal = torch::stable::to(dloss, ScalarType::Float);
  const Tensor sums = torch::stable::contiguous(torch::stable::to(given_sums, ScalarType::Float));
  with_type(fake[0], [&]<typename T>() {
    int64_t done = 0;
    for (Table& table : features.tables) {
      pix2pixhd_fast::plan<T>(table);
      STD_TORCH_CHECK(done + table.sums <= sums.numel(),
                      "feature_matching_loss: sums do not match the features");
      STD_CUDA_CHECK(pix2pixhd_fast::launch_feature_matching_gradient<T>(
          table, floats(dtotal), floats(sums) + done, stream_of(fake[0])));
      done += table.sums;
    }
  });
  return found;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pix2pixhd_fast, CUDA, m) {
  m.impl("feature_matching_loss_forward", TORCH_BOX(&feature_matching_loss_forward_cuda));
  m.impl("feature_matching_loss_backward", TORCH_BOX(&feature_matching_loss_backward_cuda));
}
