#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <vector>

#include "multiscale_gan_loss.cuh"

namespace {

using pix2pixhd_fast::kMostPredictions;
using pix2pixhd_fast::Predictions;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Tensors = std::vector<Tensor>;

cudaStream_t stream_of(const Tensor& x) {
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(x.get_device_index(), &stream));
  return static_cast<cudaStream_t>(stream);
}

// Calls body.operator()<T>(planned predictions, whether they are the first) for contiguous tensors,
// as many at a time as a launch takes.
template <typename Body>
void for_each_launch(const Tensors& p, const Tensors* dp, double target, bool lsgan, Body body) {
  for (size_t first = 0; first < p.size(); first += kMostPredictions) {
    Predictions all{};
    all.target = static_cast<float>(target);
    all.lsgan = lsgan;
    for (size_t i = first; i < p.size() && all.count < kMostPredictions; ++i) {
      STD_TORCH_CHECK(p[i].scalar_type() == p[0].scalar_type(),
                      "multiscale_gan_loss: predictions of different dtypes");
      void* to = dp ? (*dp)[i].mutable_data_ptr() : nullptr;
      all.at[all.count++] = {p[i].const_data_ptr(), to, p[i].numel(), 0};
    }
    pix2pixhd_fast::plan(all);
    const ScalarType type = p[0].scalar_type();
    if (type == ScalarType::Float) {
      body.template operator()<float>(all, first == 0);
    } else if (type == ScalarType::Half) {
      body.template operator()<__half>(all, first == 0);
    } else {
      STD_TORCH_CHECK(type == ScalarType::BFloat16, "multiscale_gan_loss: unsupported dtype");
      body.template operator()<__nv_bfloat16>(all, first == 0);
    }
  }
}

Tensors contiguous(const Tensors& given) {
  Tensors found;
  for (const Tensor& p : given) found.push_back(torch::stable::contiguous(p));
  return found;
}

Tensor multiscale_gan_loss_forward_cuda(Tensors given, double target, bool lsgan) {
  const torch::stable::accelerator::DeviceGuard guard(given.at(0).get_device_index());
  const Tensors p = contiguous(given);
  Tensor loss = torch::stable::new_empty(p[0], {}, ScalarType::Float);
  for_each_launch(p, nullptr, target, lsgan, [&]<typename T>(const Predictions& all, bool first) {
    Tensor distances = torch::stable::new_empty(p[0], {all.blocks}, ScalarType::Float);
    STD_CUDA_CHECK(pix2pixhd_fast::launch_multiscale_gan_loss<T>(
        all, static_cast<float*>(distances.mutable_data_ptr()),
        static_cast<float*>(loss.mutable_data_ptr()), first, stream_of(p[0])));
  });
  return loss;
}

Tensors multiscale_gan_loss_backward_cuda(const Tensor& dloss, Tensors given, double target,
                                          bool lsgan) {
  const torch::stable::accelerator::DeviceGuard guard(given.at(0).get_device_index());
  const Tensors p = contiguous(given);
  const Tensor dtotal = torch::stable::to(dloss, ScalarType::Float);
  Tensors dp;
  for (const Tensor& one : p) dp.push_back(torch::stable::new_empty(one, one.sizes()));
  for_each_launch(p, &dp, target, lsgan, [&]<typename T>(const Predictions& all, bool) {
    STD_CUDA_CHECK(pix2pixhd_fast::launch_multiscale_gan_gradient<T>(
        all, static_cast<const float*>(dtotal.const_data_ptr()), stream_of(p[0])));
  });
  return dp;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pix2pixhd_fast, CUDA, m) {
  m.impl("multiscale_gan_loss_forward", TORCH_BOX(&multiscale_gan_loss_forward_cuda));
  m.impl("multiscale_gan_loss_backward", TORCH_BOX(&multiscale_gan_loss_backward_cuda));
}
