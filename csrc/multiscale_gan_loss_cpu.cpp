#include <torch/csrc/stable/library.h>

#include <cmath>
#include <vector>

#include "pictures.h"
#include "tiles.h"

namespace {

using Tensors = std::vector<Tensor>;

PIX2PIXHD_FAST_SIMD
void add_squares(const float* p, int64_t count, float target, float* sums) {
  for_each_value(count, kLanes, [=](int64_t i, int64_t lane) __attribute__((always_inline)) {
    const float d = p[i] - target;
    sums[lane] += d * d;
  });
}

// The least logarithm and the least p * (1 - p) to divide by: those of torch.nn.BCELoss.
constexpr float kLeastLog = -100.0f;
constexpr float kLeastVariance = 1e-12f;

void add_entropies(const float* p, int64_t count, float target, float* sums) {
  for_each_value(count, kLanes, [=](int64_t i, int64_t lane) {
    // Of these arguments std::max returns the first one where it is a NaN.
    const float yes = std::max(std::log(p[i]), kLeastLog);
    const float no = std::max(std::log1p(-p[i]), kLeastLog);
    sums[lane] += (target - 1.0f) * no - target * yes;
  });
}

PIX2PIXHD_FAST_SIMD
void differentiate_squares(const float* p, int64_t count, float target, float scale, float* dp) {
  for (int64_t i = 0; i < count; ++i) dp[i] = 2.0f * (p[i] - target) * scale;
}

PIX2PIXHD_FAST_SIMD
void differentiate_entropies(const float* p, int64_t count, float target, float scale, float* dp) {
  for (int64_t i = 0; i < count; ++i) {
    const float variance = p[i] * (1.0f - p[i]);
    dp[i] = (p[i] - target) / (variance < kLeastVariance ? kLeastVariance : variance) * scale;
  }
}

// Calls body(p as floats, offset, count) for the tiles of a tensor from `begin` to `end`.
template <typename T, typename Body>
void for_each_tile(const Tensor& p, int64_t begin, int64_t end, Body body) {
  const T* from = static_cast<const T*>(p.const_data_ptr());
  const Buffer buffer = uninitialised(kTile);
  for (int64_t i = begin; i < end; i += kTile) {
    const int64_t n = std::min(kTile, end - i);
    body(load_tile(from + i, n, buffer.get()), i, n);
  }
}

template <typename T>
double distance(const Tensor& p, float target, bool lsgan) {
  const int64_t chunks = ceil_div(p.numel(), kChunk);
  std::vector<double> partial(chunks);
  parallel_for(0, chunks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t chunk = begin; chunk < end; ++chunk) {
      float sums[kLanes] = {};
      const int64_t last = std::min(p.numel(), (chunk + 1) * kChunk);
      for_each_tile<T>(p, chunk * kChunk, last, [&](const float* values, int64_t, int64_t n) {
        (lsgan ? add_squares : add_entropies)(values, n, target, sums);
      });
      for (float sum : sums) partial[chunk] += sum;
    }
  });
  double total = 0.0;
  for (double part : partial) total += part;
  return total / static_cast<double>(p.numel());
}

Tensor multiscale_gan_loss_forward_cpu(Tensors predictions, double target, bool lsgan) {
  double total = 0.0;
  for (const Tensor& given : predictions) {
    const Tensor p = torch::stable::contiguous(given);
    with_type(p, [&]<typename T>() { total += distance<T>(p, static_cast<float>(target), lsgan); });
  }
  Tensor loss = torch::stable::empty({}, ScalarType::Float);
  *static_cast<float*>(loss.mutable_data_ptr()) = static_cast<float>(total);
  return loss;
}

Tensors multiscale_gan_loss_backward_cpu(const Tensor& dloss, Tensors predictions, double target,
                                         bool lsgan) {
  STD_TORCH_CHECK(dloss.numel() == 1, "multiscale_gan_loss: dloss must be a scalar");
  const Tensor dtotal = torch::stable::to(dloss, ScalarType::Float);
  const float upstream = *static_cast<const float*>(dtotal.const_data_ptr());
  Tensors found;
  for (const Tensor& given : predictions) {
    const Tensor p = torch::stable::contiguous(given);
    Tensor& dp = found.emplace_back(torch::stable::empty(p.sizes(), p.scalar_type()));
    const float scale = upstream / static_cast<float>(p.numel());
    with_type(p, [&]<typename T>() {
      T* to = static_cast<T*>(dp.mutable_data_ptr());
      parallel_for(0, p.numel(), kChunk, [&](int64_t begin, int64_t end) {
        const Buffer buffer = uninitialised(kTile);
        for_each_tile<T>(p, begin, end, [&](const float* values, int64_t i, int64_t n) {
          float* floats = tile_target(to + i, buffer.get());
          const auto differentiate = lsgan ? differentiate_squares : differentiate_entropies;
          differentiate(values, n, static_cast<float>(target), scale, floats);
          store_tile(floats, n, to + i);
        });
      });
    });
  }
  return found;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pix2pixhd_fast, CPU, m) {
  m.impl("multiscale_gan_loss_forward", TORCH_BOX(&multiscale_gan_loss_forward_cpu));
  m.impl("multiscale_gan_loss_backward", TORCH_BOX(&multiscale_gan_loss_backward_cpu));
}
