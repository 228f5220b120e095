#include <torch/csrc/stable/library.h>

#include <string>

#include "activations.h"
#include "pictures.h"
#include "tiles.h"

namespace {

// The parameters of an image, [lanes] each: z = (x - mean) * rstd, of both features.
struct Parameters {
  const float *mean, *rstd, *real_mean, *real_rstd, *mean_g, *mean_dot;
};

// dx = rstd * (g - mean_g - z * mean_dot), where g = act'(z) * (dp + scale * sign(y - target)) and
// y = act(z); dx may be dp.
PIX2PIXHD_FAST_SIMD
void differentiate(const float* dp, const float* fake, const float* real, int64_t count,
                   int64_t lanes, Parameters by, float scale, Act act, float slope, float* dx) {
  with_act(act, [=]<Act a>() __attribute__((always_inline)) {
    for_each_value(count, lanes, [=](int64_t i, int64_t lane) __attribute__((always_inline)) {
      const float z = (fake[i] - by.mean[lane]) * by.rstd[lane];
      const float other = (real[i] - by.real_mean[lane]) * by.real_rstd[lane];
      const float y = activate<a>(z, slope), target = activate<a>(other, slope);
      // Fused into a multiply-add, the difference of equal numbers need not be 0.
      const float sign = choose(y == target, 0.0f, sign_of(y - target));
      const float g = activate_backward<a>(dp[i] + scale * sign, z, slope);
      dx[i] = by.rstd[lane] * (g - by.mean_g[lane] - z * by.mean_dot[lane]);
    });
  });
}

// [N, C] of the gradient that is given, and of the loss without its factor.
struct Mean {
  PerChannel given, match;

  // [lanes] of an image; `scratch` is as long.
  void fill(const Pictures& pictures, int64_t image, float scale, float* lanes,
            float* scratch) const {
    given.fill(pictures, image, lanes);
    match.fill(pictures, image, scratch);
    for (int64_t lane = 0; lane < pictures.lanes; ++lane) lanes[lane] += scale * scratch[lane];
  }
};

struct Matched {
  MemoryFormat format;
  Pictures pictures;
  Tensor dp, fake, real;
  PerChannel mean, rstd, real_mean, real_rstd;
  Mean mean_g, mean_dot;
  float scale;
  Act act;
  float slope;

  // `values`: [7, lanes]
  Parameters parameters(int64_t image, float* values) const {
    float* at[7];
    for (int64_t k = 0; k < 7; ++k) at[k] = values + k * pictures.lanes;
    mean.fill(pictures, image, at[0]);
    rstd.fill(pictures, image, at[1]);
    real_mean.fill(pictures, image, at[2]);
    real_rstd.fill(pictures, image, at[3]);
    mean_g.fill(pictures, image, scale, at[4], at[6]);
    mean_dot.fill(pictures, image, scale, at[5], at[6]);
    return {at[0], at[1], at[2], at[3], at[4], at[5]};
  }

  template <typename T>
  void differentiate_image(int64_t image, Rows<T> dx) const {
    const int64_t lanes = pictures.lanes, tile = pictures.tile;
    const Buffer values = uninitialised(7 * lanes);
    const Parameters by = parameters(image, values.get());
    const auto given = rows_of<const T>(dp, format), x = rows_of<const T>(fake, format),
               other = rows_of<const T>(real, format);
    parallel_for(
        0, pictures.height, ceil_div(kChunk, pictures.row_size()), [&](int64_t begin, int64_t end) {
          const Buffer scratch = uninitialised(3 * tile);
          float* buffer = scratch.get();
          // Upwards: what the sums of dp read last is still in the cache.
          for (int64_t row = end - 1; row >= begin; --row) {
            pictures.for_each_tile([&](int64_t first, int64_t last) {
              const int64_t i = first * pictures.channels, n = (last - first) * pictures.channels;
              T* to = dx.at(image, row) + i;
              float* floats = tile_target(to, buffer);
              differentiate(load_tile(given.at(image, row) + i, n, buffer),
                            load_tile(x.at(image, row) + i, n, buffer + tile),
                            load_tile(other.at(image, row) + i, n, buffer + 2 * tile), n, lanes, by,
                            scale, act, slope, floats);
              store_tile(floats, n, to);
            });
          }
        });
  }
};

using Given = std::optional<Tensor>;

Tensor matched_norm_backward_cpu(const Tensor& dp, const Tensor& x, const Given& mean,
                                 const Given& rstd, const Given& mean_g, const Given& mean_dot,
                                 const Tensor& real, const Given& real_mean, const Given& real_rstd,
                                 const Given& match_g, const Given& match_dot, const Tensor& dloss,
                                 double weight, std::string act, double slope) {
  STD_TORCH_CHECK(dloss.numel() == 1, "matched_norm_backward: dloss must be one number");
  const Tensor upstream = torch::stable::to(dloss, ScalarType::Float);
  const MemoryFormat format = format_of(x);
  const Matched matched{
      format,
      Pictures(format, x),
      with_rows(check_alike(dp, x, 0, "dp"), format),
      with_rows(x, format),
      with_rows(check_alike(real, x, 0, "real"), format),
      PerChannel(mean, x, 0.0f),
      PerChannel(rstd, x, 1.0f),
      PerChannel(real_mean, x, 0.0f),
      PerChannel(real_rstd, x, 1.0f),
      {PerChannel(mean_g, x, 0.0f), PerChannel(match_g, x, 0.0f)},
      {PerChannel(mean_dot, x, 0.0f), PerChannel(match_dot, x, 0.0f)},
      *static_cast<const float*>(upstream.const_data_ptr()) * static_cast<float>(weight),
      act_of(act),
      static_cast<float>(slope)};
  Tensor dx = new_tensor(format, x, x.size(2), x.size(3));
  if (x.numel() == 0) return dx;
  with_type(x, [&]<typename T>() {
    const auto rows = rows_of<T>(dx, format);
    matched.pictures.for_each_image(
        [&](int64_t image) { matched.differentiate_image<T>(image, rows); });
  });
  return dx;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pix2pixhd_fast, CPU, m) {
  m.impl("matched_norm_backward", TORCH_BOX(&matched_norm_backward_cpu));
}
