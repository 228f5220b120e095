#include <torch/csrc/stable/library.h>

#include <string>

#include "activations.h"
#include "padding.h"
#include "pictures.h"
#include "tiles.h"

namespace {

// The parameters of an image, [lanes] each.
struct Affine {
  const float *mean, *rstd, *gamma, *beta;
};

// y = act((x - mean) * rstd * gamma + beta); y may be x.
PIX2PIXHD_FAST_SIMD
void normalise(const float* x, int64_t count, int64_t lanes, Affine by, Act act, float slope,
               float* y) {
  with_act(act, [=]<Act a>() __attribute__((always_inline)) {
    for_each_value(count, lanes, [=](int64_t i, int64_t lane) __attribute__((always_inline)) {
      const float xhat = (x[i] - by.mean[lane]) * by.rstd[lane];
      y[i] = activate<a>(xhat * by.gamma[lane] + by.beta[lane], slope);
    });
  });
}

template <typename T>
struct Apply {
  Pictures pictures;
  Padding padding;
  Act act;
  float slope;
  bool moves_only;  // nothing is computed
  const PerChannel &mean, &rstd, &gamma, &beta;
  Rows<const T> x, residual;
  Rows<T> y;

  void run() const {
    pictures.for_each_image([&](int64_t image) {
      const int64_t lanes = pictures.lanes;
      const Buffer parameters = uninitialised(4 * lanes);
      mean.fill(pictures, image, parameters.get());
      rstd.fill(pictures, image, parameters.get() + lanes);
      gamma.fill(pictures, image, parameters.get() + 2 * lanes);
      beta.fill(pictures, image, parameters.get() + 3 * lanes);
      image_rows(image, {parameters.get(), parameters.get() + lanes, parameters.get() + 2 * lanes,
                         parameters.get() + 3 * lanes});
    });
  }

  void image_rows(int64_t image, Affine affine) const {
    const int64_t padded_height = pictures.height + 2 * padding.pad;
    const int64_t row_size = (pictures.width + 2 * padding.pad) * pictures.channels;
    parallel_for(0, padded_height, ceil_div(kChunk, row_size), [&](int64_t begin, int64_t end) {
      const Buffer buffer = uninitialised(pictures.tile);
      // Upwards: what the statistics read last is still in the cache.
      for (int64_t row = end - 1; row >= begin; --row) {
        T* to = y.at(image, row);
        const int64_t from = padding.source(row, pictures.height);
        if (from < 0) {
          std::fill_n(to, row_size, T{});
        } else {
          inner_row(image, from, affine, buffer.get(), to + padding.pad * pictures.channels);
          border(to);
        }
      }
    });
  }

  void inner_row(int64_t image, int64_t row, Affine affine, float* buffer, T* to) const {
    const T* from = x.at(image, row);
    if (moves_only) {
      std::copy_n(from, pictures.row_size(), to);
      return;
    }
    const T* add = residual.data ? residual.at(image, row) : nullptr;
    pictures.for_each_tile([&](int64_t first, int64_t last) {
      const int64_t i = first * pictures.channels, n = (last - first) * pictures.channels;
      float* floats = tile_target(to + i, buffer);
      normalise(load_tile(from + i, n, buffer), n, pictures.lanes, affine, act, slope, floats);
      if (add) add_tile(add + i, n, floats);
      store_tile(floats, n, to + i);
    });
  }

  // Of a row whose inner part is there.
  void border(T* row) const {
    const int64_t channels = pictures.channels, pad = padding.pad, width = pictures.width;
    const auto fill = [&](int64_t column) {
      const int64_t from = padding.source(column, width);
      T* pixel = row + column * channels;
      if (from < 0) {
        std::fill_n(pixel, channels, T{});
      } else {
        std::copy_n(row + (pad + from) * channels, channels, pixel);
      }
    };
    for (int64_t column = 0; column < pad; ++column) fill(column);
    for (int64_t column = pad + width; column < width + 2 * pad; ++column) fill(column);
  }
};

Tensor norm_act_pad_apply_cpu(const Tensor& given, const std::optional<Tensor>& mean,
                              const std::optional<Tensor>& rstd, const std::optional<Tensor>& gamma,
                              const std::optional<Tensor>& beta,
                              const std::optional<Tensor>& residual, std::string act, double slope,
                              std::string padding_name, int64_t pad) {
  const MemoryFormat format = format_of(given);
  const Pictures pictures(format, given);
  const Padding padding = padding_of(padding_name, pad, given.size(2), given.size(3));
  const PerChannel means(mean, given, 0.0f), rstds(rstd, given, 1.0f);
  const PerChannel gammas(gamma, given, 1.0f), betas(beta, given, 0.0f);
  if (residual) check_alike(*residual, given, 0, "residual");
  Tensor y = new_tensor(format, given, given.size(2) + 2 * pad, given.size(3) + 2 * pad);
  if (given.numel() == 0) return y;
  const Tensor x = with_rows(given, format);
  const Tensor add = residual ? with_rows(*residual, format) : x;
  const Act activation = act_of(act);
  const bool moves_only = activation == Act::none && !mean && !gamma && !beta && !residual;
  with_type(x, [&]<typename T>() {
    Apply<T>{pictures,
             padding,
             activation,
             static_cast<float>(slope),
             moves_only,
             means,
             rstds,
             gammas,
             betas,
             rows_of<const T>(x, format),
             residual ? rows_of<const T>(add, format) : Rows<const T>{},
             rows_of<T>(y, format)}
        .run();
  });
  return y;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pix2pixhd_fast, CPU, m) {
  m.impl("norm_act_pad_apply", TORCH_BOX(&norm_act_pad_apply_cpu));
}
