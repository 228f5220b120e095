#include <torch/csrc/stable/library.h>

#include <string>
#include <tuple>
#include <vector>

#include "activations.h"
#include "padding.h"
#include "pictures.h"
#include "tiles.h"

namespace {

// The parameters of an image, [lanes] each. xhat = (x - mean) * scale and z = xhat * gamma + beta;
// scale is rstd, or 1 where x is xhat already.
struct Parameters {
  const float *mean, *scale, *gamma, *beta;
  const float *mean_g, *mean_dot, *rstd;
};

// sums += g and dots += g * xhat, where g = dy * act'(z)
PIX2PIXHD_FAST_SIMD
void add_gradients(const float* dy, const float* x, int64_t count, int64_t lanes, Parameters by,
                   Act act, float slope, float* sums, float* dots) {
  with_act(act, [=]<Act a>() __attribute__((always_inline)) {
    for_each_value(count, lanes, [=](int64_t i, int64_t lane) __attribute__((always_inline)) {
      const float xhat = (x[i] - by.mean[lane]) * by.scale[lane];
      const float z = xhat * by.gamma[lane] + by.beta[lane];
      const float g = activate_backward<a>(dy[i], z, slope);
      sums[lane] += g;
      dots[lane] += g * xhat;
    });
  });
}

// dx = gamma * rstd * (g - mean_g - xhat * mean_dot); dx may be dy or x.
PIX2PIXHD_FAST_SIMD
void normalise_backward(const float* dy, const float* x, int64_t count, int64_t lanes,
                        Parameters by, Act act, float slope, float* dx) {
  with_act(act, [=]<Act a>() __attribute__((always_inline)) {
    for_each_value(count, lanes, [=](int64_t i, int64_t lane) __attribute__((always_inline)) {
      const float xhat = (x[i] - by.mean[lane]) * by.scale[lane];
      const float z = xhat * by.gamma[lane] + by.beta[lane];
      const float g = activate_backward<a>(dy[i], z, slope);
      const float centred = g - by.mean_g[lane] - xhat * by.mean_dot[lane];
      dx[i] = by.gamma[lane] * by.rstd[lane] * centred;
    });
  });
}

// The arguments that both passes have.
struct Given {
  MemoryFormat format;
  Pictures pictures;
  Padding padding;
  Act act;
  float slope;
  Tensor dy, x;
  std::optional<Tensor> minus;
  PerChannel mean, scale, gamma, beta, rstd;

  Given(const Tensor& given_dy, const Tensor& given, const std::optional<Tensor>& given_minus,
        const std::optional<Tensor>& given_mean, const std::optional<Tensor>& given_rstd,
        const std::optional<Tensor>& given_gamma, const std::optional<Tensor>& given_beta,
        const std::string& act_name, double given_slope, const std::string& padding_name,
        int64_t pad)
      : format(format_of(given)),
        pictures(format, given),
        padding(padding_of(padding_name, pad, given.size(2), given.size(3))),
        act(act_of(act_name)),
        slope(static_cast<float>(given_slope)),
        dy(with_rows(check_alike(given_dy, given, pad, "dy"), format)),
        x(with_rows(given, format)),
        mean(given_minus ? std::nullopt : given_mean, given, 0.0f),
        scale(given_minus ? std::nullopt : given_rstd, given, 1.0f),
        gamma(given_gamma, given, 1.0f),
        beta(given_beta, given, 0.0f),
        rstd(given_rstd, given, 1.0f) {
    if (given_minus) minus = with_rows(check_alike(*given_minus, given, 0, "minus"), format);
  }
};

template <typename T>
struct Backward {
  const Given& given;
  const Pictures& pictures;
  const PerChannel &mean_g, &mean_dot;
  Folding<T> folding;
  Rows<const T> x, minus;

  Backward(const Given& given, const PerChannel& mean_g, const PerChannel& mean_dot)
      : given(given),
        pictures(given.pictures),
        mean_g(mean_g),
        mean_dot(mean_dot),
        folding{given.pictures, given.padding, rows_of<const T>(given.dy, given.format)},
        x(rows_of<const T>(given.x, given.format)),
        minus(given.minus ? rows_of<const T>(*given.minus, given.format) : Rows<const T>{}) {}

  // The means of g and g * xhat, [images, channels] each.
  void reduce(float* means_g, float* means_dot) const {
    pictures.for_each_image([&](int64_t image) {
      const int64_t channels = pictures.channels;
      with_parameters(image, [&](Parameters parameters) {
        reduce_image(image, parameters, means_g + image * channels, means_dot + image * channels);
      });
    });
  }

  void apply(Rows<T> dx) const {
    pictures.for_each_image([&](int64_t image) {
      with_parameters(image, [&](Parameters parameters) { apply_image(image, parameters, dx); });
    });
  }

 private:
  template <typename Body>
  void with_parameters(int64_t image, Body body) const {
    const PerChannel* all[] = {&given.mean, &given.scale, &given.gamma, &given.beta,
                               &mean_g,     &mean_dot,    &given.rstd};
    const int64_t lanes = pictures.lanes;
    const Buffer values = uninitialised(std::size(all) * lanes);
    const float* at[std::size(all)];
    for (size_t k = 0; k < std::size(all); ++k) {
      all[k]->fill(pictures, image, values.get() + k * lanes);
      at[k] = values.get() + k * lanes;
    }
    body({at[0], at[1], at[2], at[3], at[4], at[5], at[6]});
  }

  void reduce_image(int64_t image, Parameters parameters, float* means_g, float* means_dot) const {
    const int64_t channels = pictures.channels, lanes = pictures.lanes;
    const int64_t chunk_rows = ceil_div(kChunk, pictures.row_size());
    const int64_t chunks = ceil_div(pictures.height, chunk_rows);
    const Buffer partial = uninitialised(chunks * 2 * channels);
    parallel_for(0, chunks, 1, [&](int64_t begin, int64_t end) {
      const Buffer scratch = uninitialised(2 * lanes + 2 * pictures.tile);
      float* sums = scratch.get();
      float* dots = sums + lanes;
      for (int64_t chunk = begin; chunk < end; ++chunk) {
        std::fill_n(sums, 2 * lanes, 0.0f);
        const int64_t last = std::min(pictures.height, (chunk + 1) * chunk_rows);
        for (int64_t row = chunk * chunk_rows; row < last; ++row) {
          for_each_tile(image, row, dots + lanes,
                        [&](const float* dy, const float* values, int64_t, int64_t n) {
                          add_gradients(dy, values, n, lanes, parameters, given.act, given.slope,
                                        sums, dots);
                        });
        }
        pictures.fold(sums);
        pictures.fold(dots);
        std::copy_n(sums, channels, partial.get() + chunk * 2 * channels);
        std::copy_n(dots, channels, partial.get() + (chunk * 2 + 1) * channels);
      }
    });
    combine(partial.get(), chunks, means_g, means_dot);
  }

  // Of the chunks' sums [chunks, 2, channels] the means.
  void combine(const float* partial, int64_t chunks, float* means_g, float* means_dot) const {
    const int64_t channels = pictures.channels;
    std::vector<double> total(2 * channels);
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      for (int64_t c = 0; c < 2 * channels; ++c) total[c] += partial[chunk * 2 * channels + c];
    }
    for (int64_t c = 0; c < channels; ++c) {
      means_g[c] = static_cast<float>(total[c] / pictures.pixels());
      means_dot[c] = static_cast<float>(total[channels + c] / pictures.pixels());
    }
  }

  void apply_image(int64_t image, Parameters parameters, Rows<T> dx) const {
    const int64_t grain = ceil_div(kChunk, pictures.row_size());
    parallel_for(0, pictures.height, grain, [&](int64_t begin, int64_t end) {
      const Buffer scratch = uninitialised(2 * pictures.tile);
      // Upwards: what the sums read last is still in the cache.
      for (int64_t row = end - 1; row >= begin; --row) {
        T* to = dx.at(image, row);
        for_each_tile(image, row, scratch.get(),
                      [&](const float* dy, const float* values, int64_t i, int64_t n) {
                        float* floats = tile_target(to + i, scratch.get());
                        normalise_backward(dy, values, n, pictures.lanes, parameters, given.act,
                                           given.slope, floats);
                        store_tile(floats, n, to + i);
                      });
      }
    });
  }

  // Calls body(gradient of the unpadded, x or x - minus, offset in the row, count) along a row;
  // `scratch` is two tiles.
  template <typename Body>
  void for_each_tile(int64_t image, int64_t row, float* scratch, Body body) const {
    const T* values = x.at(image, row);
    const T* less = minus.data ? minus.at(image, row) : nullptr;
    pictures.for_each_tile([&](int64_t first, int64_t last) {
      const int64_t i = first * pictures.channels, n = (last - first) * pictures.channels;
      const float* dy = folding.tile(image, row, first, last, scratch);
      float* buffer = scratch + pictures.tile;
      if (less == nullptr) {
        body(dy, load_tile(values + i, n, buffer), i, n);
      } else {
        float* difference = copy_tile(values + i, n, buffer);
        subtract_tile(less + i, n, difference);
        body(dy, difference, i, n);
      }
    });
  }
};

std::tuple<Tensor, Tensor> norm_act_pad_reduce_cpu(
    const Tensor& dy, const Tensor& x, const std::optional<Tensor>& minus,
    const std::optional<Tensor>& mean, const std::optional<Tensor>& rstd,
    const std::optional<Tensor>& gamma, const std::optional<Tensor>& beta, std::string act,
    double slope, std::string padding, int64_t pad) {
  const Given given(dy, x, minus, mean, rstd, gamma, beta, act, slope, padding, pad);
  const PerChannel nothing(std::nullopt, x, 0.0f);
  Tensor means_g = new_per_channel(x), means_dot = new_per_channel(x);
  if (x.numel() > 0) {
    with_type(x, [&]<typename T>() {
      Backward<T>(given, nothing, nothing)
          .reduce(static_cast<float*>(means_g.mutable_data_ptr()),
                  static_cast<float*>(means_dot.mutable_data_ptr()));
    });
  }
  return {means_g, means_dot};
}

Tensor norm_act_pad_backward_cpu(
    const Tensor& dy, const Tensor& x, const std::optional<Tensor>& minus,
    const std::optional<Tensor>& mean, const std::optional<Tensor>& rstd,
    const std::optional<Tensor>& gamma, const std::optional<Tensor>& beta,
    const std::optional<Tensor>& mean_g, const std::optional<Tensor>& mean_dot, std::string act,
    double slope, std::string padding, int64_t pad) {
  const Given given(dy, x, minus, mean, rstd, gamma, beta, act, slope, padding, pad);
  const PerChannel means_g(mean_g, x, 0.0f), means_dot(mean_dot, x, 0.0f);
  Tensor dx = new_tensor(given.format, x, x.size(2), x.size(3));
  if (x.numel() > 0) {
    with_type(x, [&]<typename T>() {
      Backward<T>(given, means_g, means_dot).apply(rows_of<T>(dx, given.format));
    });
  }
  return dx;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pix2pixhd_fast, CPU, m) {
  m.impl("norm_act_pad_reduce", TORCH_BOX(&norm_act_pad_reduce_cpu));
  m.impl("norm_act_pad_backward", TORCH_BOX(&norm_act_pad_backward_cpu));
}
