#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <string>
#include <tuple>
#include <vector>

#include "huge_pages.h"
#include "norm_act_pad_problem.h"
#include "norm_act_pad_tiles.h"

// A contiguous [N, C, H, W] is a channels_last [N * C, 1, H, W]: there is one way through memory,
// pixel by pixel, for both formats. Each image (for the default format: plane) is read twice.

namespace {

using torch::headeronly::ScalarType;
using torch::stable::parallel_for;

template <typename T>
struct Forward : Problem {
  const T* x;
  T* y;
  float* mean;
  float* rstd;
  double eps;

  void run() const {
    for_each_image([&](int64_t image) {
      statistics(image);
      apply(image);
    });
  }

  void statistics(int64_t image) const {
    const int64_t chunk_pixels = ceil_div(kChunk, tile) * tile_pixels;
    const int64_t chunks = ceil_div(pixels(), chunk_pixels);
    const Buffer means = uninitialised(chunks * channels);
    const Buffer squares = uninitialised(chunks * channels);
    parallel_for(0, chunks, 1, [&](int64_t begin, int64_t end) {
      const Buffer scratch = uninitialised(3 * lanes + tile);
      for (int64_t chunk = begin; chunk < end; ++chunk) {
        const int64_t first = chunk * chunk_pixels;
        const int64_t count = std::min(chunk_pixels, pixels() - first);
        chunk_statistics(x + (image * pixels() + first) * channels, count, scratch.get(),
                         means.get() + chunk * channels, squares.get() + chunk * channels);
      }
    });
    combine(means.get(), squares.get(), chunks, chunk_pixels, image);
  }

  // The means of a chunk of `count` pixels and the sums of the squared distances from them,
  // [channels] each. The moments are about the mean of the first tile. It is a 16th of the chunk or
  // more, and thus within 4 deviations of the chunk's mean: 17 roundings are the most that is lost.
  void chunk_statistics(const T* chunk, int64_t count, float* scratch, float* means,
                        float* squares) const {
    float* shift = scratch;
    float* sums = shift + lanes;
    float* dots = sums + lanes;
    float* buffer = dots + lanes;
    std::fill_n(scratch, 3 * lanes, 0.0f);
    const int64_t size = count * channels;
    const int64_t start = std::min(tile, size);
    add_moments(load_tile(chunk, start, buffer), start, lanes, shift, sums, dots);
    fold(sums);
    for (int64_t c = 0; c < channels; ++c) shift[c] = sums[c] * channels / start;
    repeat(shift);
    std::fill_n(sums, 2 * lanes, 0.0f);
    for (int64_t i = 0; i < size; i += tile) {
      const int64_t n = std::min(tile, size - i);
      add_moments(load_tile(chunk + i, n, buffer), n, lanes, shift, sums, dots);
    }
    fold(sums);
    fold(dots);
    for (int64_t c = 0; c < channels; ++c) {
      const double distance = static_cast<double>(sums[c]) / count;
      means[c] = static_cast<float>(shift[c] + distance);
      squares[c] = static_cast<float>(std::max(0.0, dots[c] - distance * sums[c]));
    }
  }

  // Of the chunks' means and squared distances [chunks, channels].
  void combine(const float* means, const float* squares, int64_t chunks, int64_t chunk_pixels,
               int64_t image) const {
    const double all = static_cast<double>(pixels());
    std::vector<double> total(channels), spread(channels);
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      const double share = std::min(chunk_pixels, pixels() - chunk * chunk_pixels) / all;
      for (int64_t c = 0; c < channels; ++c) total[c] += share * means[chunk * channels + c];
    }
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      const double share = std::min(chunk_pixels, pixels() - chunk * chunk_pixels) / all;
      for (int64_t c = 0; c < channels; ++c) {
        const double d = means[chunk * channels + c] - total[c];
        spread[c] += squares[chunk * channels + c] / all + share * d * d;
      }
    }
    for (int64_t c = 0; c < channels; ++c) {
      mean[image * channels + c] = static_cast<float>(total[c]);
      rstd[image * channels + c] = static_cast<float>(1.0 / std::sqrt(spread[c] + eps));
    }
  }

  void apply(int64_t image) const {
    const Buffer parameters = uninitialised(2 * lanes);
    std::copy_n(mean + image * channels, channels, parameters.get());
    std::copy_n(rstd + image * channels, channels, parameters.get() + lanes);
    repeat(parameters.get());
    repeat(parameters.get() + lanes);
    const int64_t row_size = padded_width() * channels;
    parallel_for(0, padded_height(), ceil_div(kChunk, row_size), [&](int64_t begin, int64_t end) {
      const Buffer buffer = uninitialised(tile);
      // Upwards: what the statistics read last is still in the cache.
      for (int64_t row = end - 1; row >= begin; --row) {
        T* to = y + (image * padded_height() + row) * row_size;
        const int64_t from = source(row, height);
        if (from < 0) {
          std::fill_n(to, row_size, T{});
        } else {
          apply_row(x + (image * height + from) * width * channels, parameters.get(), buffer.get(),
                    to);
        }
      }
    });
  }

  void apply_row(const T* row, const float* parameters, float* buffer, T* to) const {
    const int64_t size = width * channels;
    T* inside = to + pad * channels;
    for (int64_t i = 0; i < size; i += tile) {
      const int64_t n = std::min(tile, size - i);
      float* floats = tile_target(inside + i, buffer);
      normalise(load_tile(row + i, n, buffer), n, lanes, parameters, parameters + lanes, act, slope,
                floats);
      store_tile(floats, n, inside + i);
    }
    const auto border = [&](int64_t column) {
      const int64_t from = source(column, width);
      T* pixel = to + column * channels;
      if (from < 0) {
        std::fill_n(pixel, channels, T{});
      } else {
        std::copy_n(inside + from * channels, channels, pixel);
      }
    };
    for (int64_t column = 0; column < pad; ++column) border(column);
    for (int64_t column = pad + width; column < padded_width(); ++column) border(column);
  }
};

template <typename T>
struct Backward : Problem {
  const T* dy;
  const T* x;
  const float* mean;
  const float* rstd;
  T* dx;

  void run() const {
    for_each_image([&](int64_t image) {
      // mean, rstd and the means of g and g * xhat, [lanes] each
      const Buffer parameters = uninitialised(4 * lanes);
      std::copy_n(mean + image * channels, channels, parameters.get());
      std::copy_n(rstd + image * channels, channels, parameters.get() + lanes);
      repeat(parameters.get());
      repeat(parameters.get() + lanes);
      reduce(image, parameters.get());
      apply(image, parameters.get());
    });
  }

  void reduce(int64_t image, float* parameters) const {
    const int64_t chunk_rows = ceil_div(kChunk, width * channels);
    const int64_t chunks = ceil_div(height, chunk_rows);
    const Buffer partial = uninitialised(chunks * 2 * channels);
    parallel_for(0, chunks, 1, [&](int64_t begin, int64_t end) {
      const Buffer scratch = uninitialised(2 * lanes + 2 * tile);
      float* sums = scratch.get();
      float* dots = sums + lanes;
      for (int64_t chunk = begin; chunk < end; ++chunk) {
        std::fill_n(sums, 2 * lanes, 0.0f);
        const int64_t last = std::min(height, (chunk + 1) * chunk_rows);
        for (int64_t row = chunk * chunk_rows; row < last; ++row) {
          for_each_tile(image, row, dots + lanes,
                        [&](const float* g, const float* in, int64_t, int64_t n) {
                          add_gradients(g, in, n, lanes, parameters, parameters + lanes, act, slope,
                                        sums, dots);
                        });
        }
        fold(sums);
        fold(dots);
        std::copy_n(sums, channels, partial.get() + chunk * 2 * channels);
        std::copy_n(dots, channels, partial.get() + (chunk * 2 + 1) * channels);
      }
    });
    combine(partial.get(), chunks, parameters + 2 * lanes);
  }

  // Of the chunks' sums [chunks, 2, channels] the means, [2, lanes].
  void combine(const float* partial, int64_t chunks, float* means) const {
    std::vector<double> total(2 * channels);
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      for (int64_t c = 0; c < 2 * channels; ++c) total[c] += partial[chunk * 2 * channels + c];
    }
    for (int64_t k = 0; k < 2; ++k) {
      for (int64_t c = 0; c < channels; ++c) {
        means[k * lanes + c] = static_cast<float>(total[k * channels + c] / pixels());
      }
      repeat(means + k * lanes);
    }
  }

  void apply(int64_t image, const float* parameters) const {
    parallel_for(0, height, ceil_div(kChunk, width * channels), [&](int64_t begin, int64_t end) {
      const Buffer scratch = uninitialised(2 * tile);
      for (int64_t row = end - 1; row >= begin; --row) {
        T* to = dx + (image * height + row) * width * channels;
        for_each_tile(image, row, scratch.get(),
                      [&](const float* g, const float* in, int64_t i, int64_t n) {
                        float* floats = tile_target(to + i, scratch.get());
                        normalise_backward(g, in, n, lanes, parameters, parameters + lanes,
                                           parameters + 2 * lanes, parameters + 3 * lanes, act,
                                           slope, floats);
                        store_tile(floats, n, to + i);
                      });
      }
    });
  }

  // Calls body(gradient of the unpadded, x, offset in the row, count) along a row; `scratch` is two
  // tiles.
  template <typename Body>
  void for_each_tile(int64_t image, int64_t row, float* scratch, Body body) const {
    const T* x_row = x + (image * height + row) * width * channels;
    for (int64_t first = 0; first < width; first += tile_pixels) {
      const int64_t last = std::min(width, first + tile_pixels);
      const int64_t count = (last - first) * channels;
      const float* g = fold_tile(image, row, first, last, scratch);
      body(g, load_tile(x_row + first * channels, count, scratch + tile), first * channels, count);
    }
  }

  // The gradient of the padding, columns [first, last): the sum of all copies of each pixel.
  const float* fold_tile(int64_t image, int64_t row, int64_t first, int64_t last,
                         float* buffer) const {
    const T* dy_image = dy + image * padded_height() * padded_width() * channels;
    const int64_t count = (last - first) * channels;
    const auto at = [&](int64_t r, int64_t column) {
      return dy_image + (r * padded_width() + column) * channels;
    };
    // The columns with more copies than one: those before `left` and from `right` on.
    const int64_t reach = padding == Padding::reflect ? pad + 1 : padding == Padding::replicate;
    const int64_t left = std::clamp(reach, first, last);
    const int64_t right = std::clamp(width - reach, left, last);
    int64_t mirrors = 0;
    for_each_mirror(row, height, [&](int64_t) { ++mirrors; });
    if (mirrors == 0 && left == first && right == last) {
      return load_tile(at(row + pad, first + pad), count, buffer);
    }
    std::fill_n(buffer, count, 0.0f);
    const auto add_row = [&](int64_t r) {
      add_tile(at(r, first + pad), count, buffer);
      const auto add_mirrors = [&](int64_t column) {
        for_each_mirror(column, width, [&](int64_t mirror) {
          add_tile(at(r, mirror), channels, buffer + (column - first) * channels);
        });
      };
      for (int64_t column = first; column < left; ++column) add_mirrors(column);
      for (int64_t column = right; column < last; ++column) add_mirrors(column);
    };
    add_row(row + pad);
    for_each_mirror(row, height, add_row);
    return buffer;
  }
};

Tensor new_like(const Tensor& x, int64_t pad, MemoryFormat format) {
  Tensor y =
      torch::stable::empty({x.size(0), x.size(1), x.size(2) + 2 * pad, x.size(3) + 2 * pad},
                           x.scalar_type(), std::nullopt, std::nullopt, std::nullopt, format);
  advise_huge_pages(y.mutable_data_ptr(), y.numel() * y.element_size());
  return y;
}

template <typename T>
const T* data(const Tensor& tensor) {
  return static_cast<const T*>(tensor.const_data_ptr());
}

template <typename T>
T* mutable_data(Tensor& tensor) {
  return static_cast<T*>(tensor.mutable_data_ptr());
}

// Calls body.operator()<T>() for the type of the values of x.
template <typename Body>
void with_type(ScalarType type, Body body) {
  if (type == ScalarType::Float) return body.template operator()<float>();
  if (type == ScalarType::Half) return body.template operator()<Half>();
  STD_TORCH_CHECK(type == ScalarType::BFloat16, "norm_act_pad: x has an unsupported dtype");
  body.template operator()<BFloat16>();
}

std::tuple<Tensor, Tensor, Tensor> norm_act_pad_cpu(const Tensor& given, std::string act,
                                                    double slope, std::string padding, int64_t pad,
                                                    double eps) {
  STD_TORCH_CHECK(given.dim() == 4, "norm_act_pad: x must be [N, C, H, W]");
  const MemoryFormat format = format_of(given);
  const Problem problem = problem_of(given, format, act, slope, padding, pad);
  const Tensor x = torch::stable::contiguous(given, format);
  Tensor y = new_like(x, pad, format);
  Tensor mean = torch::stable::empty({x.size(0), x.size(1)}, ScalarType::Float);
  Tensor rstd = torch::stable::empty({x.size(0), x.size(1)}, ScalarType::Float);
  if (x.numel() > 0) {
    with_type(x.scalar_type(), [&]<typename T>() {
      Forward<T>{problem,
                 data<T>(x),
                 mutable_data<T>(y),
                 mutable_data<float>(mean),
                 mutable_data<float>(rstd),
                 eps}
          .run();
    });
  }
  return {y, mean, rstd};
}

Tensor norm_act_pad_backward_cpu(const Tensor& given_dy, const Tensor& given, const Tensor& mean,
                                 const Tensor& rstd, std::string act, double slope,
                                 std::string padding, int64_t pad) {
  STD_TORCH_CHECK(given.dim() == 4 && given_dy.dim() == 4, "norm_act_pad: x must be [N, C, H, W]");
  const MemoryFormat format = format_of(given);
  const Problem problem = problem_of(given, format, act, slope, padding, pad);
  STD_TORCH_CHECK(given_dy.scalar_type() == given.scalar_type() &&
                      given_dy.size(0) == given.size(0) && given_dy.size(1) == given.size(1) &&
                      given_dy.size(2) == problem.padded_height() &&
                      given_dy.size(3) == problem.padded_width(),
                  "norm_act_pad: dy does not match x");
  const Tensor x = torch::stable::contiguous(given, format);
  const Tensor dy = torch::stable::contiguous(given_dy, format);
  const Tensor means = torch::stable::contiguous(mean);
  const Tensor rstds = torch::stable::contiguous(rstd);
  STD_TORCH_CHECK(means.scalar_type() == ScalarType::Float &&
                      rstds.scalar_type() == ScalarType::Float &&
                      means.numel() == x.size(0) * x.size(1) && rstds.numel() == means.numel(),
                  "norm_act_pad: mean and rstd must be float32 [N, C]");
  Tensor dx = new_like(x, 0, format);
  if (x.numel() > 0) {
    with_type(x.scalar_type(), [&]<typename T>() {
      Backward<T>{problem,
                  data<T>(dy),
                  data<T>(x),
                  data<float>(means),
                  data<float>(rstds),
                  mutable_data<T>(dx)}
          .run();
    });
  }
  return dx;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pix2pixhd_fast, CPU, m) {
  m.impl("norm_act_pad", TORCH_BOX(&norm_act_pad_cpu));
  m.impl("norm_act_pad_backward", TORCH_BOX(&norm_act_pad_backward_cpu));
}
