#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <optional>
#include <type_traits>

#include "huge_pages.h"
#include "narrow_float.h"

// How the kernels see a tensor [N, C, H, W]. A contiguous one is a channels_last [N * C, 1, H, W]:
// there is one way through memory, row by row and pixel by pixel, for both formats.
namespace {

using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using torch::stable::parallel_for;
using torch::stable::Tensor;

// A task should have this many values: 32768 floats are 128 KiB, some 20 us; two such arrays fit
// into the second-level cache, so that the two passes over a chunk read memory once.
constexpr int64_t kChunk = 32768;
// The floats of a tile: with its buffers it fits into the first-level cache.
constexpr int64_t kTile = 2048;
// At least 1 KiB of lanes: long loops, and sums that do not wait for each other.
constexpr int64_t kLanes = 256;

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

using Buffer = std::unique_ptr<float[]>;
inline Buffer uninitialised(int64_t size) { return std::make_unique_for_overwrite<float[]>(size); }

struct Pictures {
  int64_t images, channels, height, width;
  int64_t pixels_per_step = 1;  // a power of two
  int64_t lanes, tile_pixels, tile;

  Pictures(MemoryFormat format, int64_t n, int64_t c, int64_t h, int64_t w)
      : images(format == MemoryFormat::ChannelsLast ? n : n * c),
        channels(format == MemoryFormat::ChannelsLast ? c : 1),
        height(h),
        width(w) {
    while (channels > 0 && channels * pixels_per_step < kLanes) pixels_per_step *= 2;
    lanes = channels * pixels_per_step;
    tile_pixels = pixels_per_step * std::max<int64_t>(1, lanes > 0 ? kTile / lanes : 1);
    tile = tile_pixels * channels;
  }
  Pictures(MemoryFormat format, const Tensor& x)
      : Pictures(format, x.size(0), x.size(1), x.size(2), x.size(3)) {}

  int64_t pixels() const { return height * width; }
  int64_t row_size() const { return width * channels; }
  bool empty() const { return images == 0 || channels == 0; }

  // Copies the first [channels] over and over, to [lanes].
  void repeat(float* values) const {
    for (int64_t n = channels; n < lanes; n *= 2) std::copy_n(values, n, values + n);
  }

  // [lanes] -> the sums of each channel, in the first [channels]
  void fold(float* values) const {
    for (int64_t half = lanes / 2; half >= channels; half /= 2) {
      for (int64_t i = 0; i < half; ++i) values[i] += values[half + i];
      if (half == channels) break;
    }
  }

  // Calls body(image) for all images, the last one first: several at a time where they are many or
  // small, otherwise one by one, and body is parallel itself. Results do not depend on it.
  template <typename Body>
  void for_each_image(Body body) const {
    const int64_t size = pixels() * channels;
    const bool together = images >= 4 * torch::stable::get_num_threads() || size < 2 * kChunk;
    const int64_t grain = together ? ceil_div(kChunk, size) : images;
    parallel_for(0, images, grain, [&](int64_t begin, int64_t end) {
      for (int64_t image = end - 1; image >= begin; --image) body(image);
    });
  }

  // Calls body(first column, column behind the last one) for the tiles of a row.
  template <typename Body>
  void for_each_tile(Body body) const {
    for (int64_t first = 0; first < width; first += tile_pixels) {
      body(first, std::min(width, first + tile_pixels));
    }
  }
};

// The rows of all images; those of an inner view of a bordered tensor are far apart.
template <typename T>
struct Rows {
  T* data;
  int64_t image_stride, row_stride;

  T* at(int64_t image, int64_t row) const { return data + image * image_stride + row * row_stride; }
};

// The format of results: channels_last where the channels of x lie next to each other and x is not
// contiguous as well.
inline MemoryFormat format_of(const Tensor& x) {
  STD_TORCH_CHECK(x.dim() == 4, "norm_act_pad: x must be [N, C, H, W]");
  const bool last = !x.is_contiguous() && x.size(1) > 1 && x.stride(1) == 1;
  return last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous;
}

// x itself where `rows_of` can describe it, otherwise a copy.
inline Tensor with_rows(const Tensor& x, MemoryFormat format) {
  const int64_t n = x.size(0), c = x.size(1), w = x.size(3);
  const bool dense =
      format == MemoryFormat::ChannelsLast
          ? (c == 1 || x.stride(1) == 1) && (w == 1 || x.stride(3) == c)
          : (w == 1 || x.stride(3) == 1) && (n == 1 || c == 1 || x.stride(0) == c * x.stride(1));
  return dense ? x : torch::stable::contiguous(x, format);
}

template <typename T>
Rows<T> rows_of(const Tensor& x, MemoryFormat format) {
  const int64_t planes = format == MemoryFormat::Contiguous && x.size(1) > 1;
  if constexpr (std::is_const_v<T>) {
    return {static_cast<T*>(x.const_data_ptr()), x.stride(planes), x.stride(2)};
  } else {
    return {static_cast<T*>(x.mutable_data_ptr()), x.stride(planes), x.stride(2)};
  }
}

// Returns `other`, which must be x with `pad` more pixels on each side.
inline const Tensor& check_alike(const Tensor& other, const Tensor& x, int64_t pad,
                                 const char* name) {
  STD_TORCH_CHECK(other.dim() == 4 && other.scalar_type() == x.scalar_type() &&
                      other.size(0) == x.size(0) && other.size(1) == x.size(1) &&
                      other.size(2) == x.size(2) + 2 * pad && other.size(3) == x.size(3) + 2 * pad,
                  "norm_act_pad: ", name, " does not match x");
  return other;
}

inline Tensor new_tensor(MemoryFormat format, const Tensor& like, int64_t images, int64_t height,
                         int64_t width) {
  Tensor y = torch::stable::empty({images, like.size(1), height, width}, like.scalar_type(),
                                  std::nullopt, std::nullopt, std::nullopt, format);
  advise_huge_pages(y.mutable_data_ptr(), y.numel() * y.element_size());
  return y;
}

inline Tensor new_tensor(MemoryFormat format, const Tensor& like, int64_t height, int64_t width) {
  return new_tensor(format, like, like.size(0), height, width);
}

inline Tensor new_per_channel(const Tensor& x) {
  return torch::stable::empty({x.size(0), x.size(1)}, ScalarType::Float);
}

// A parameter of each image and channel [N, C], of each channel [C], or one number.
class PerChannel {
 public:
  PerChannel(const std::optional<Tensor>& given, const Tensor& x, float otherwise)
      : otherwise_(otherwise) {
    if (!given) return;
    const bool fits = given->dim() == 1 ? given->size(0) == x.size(1)
                                        : given->dim() == 2 && given->size(0) == x.size(0) &&
                                              given->size(1) == x.size(1);
    STD_TORCH_CHECK(fits, "norm_act_pad: a parameter must be [C] or [N, C]");
    values_ = torch::stable::contiguous(torch::stable::to(*given, ScalarType::Float));
  }

  // [lanes] of an image
  void fill(const Pictures& pictures, int64_t image, float* lanes) const {
    if (!values_) {
      std::fill_n(lanes, pictures.lanes, otherwise_);
      return;
    }
    const auto* values = static_cast<const float*>(values_->const_data_ptr());
    std::copy_n(values + image * pictures.channels % values_->numel(), pictures.channels, lanes);
    pictures.repeat(lanes);
  }

 private:
  std::optional<Tensor> values_;
  float otherwise_;
};

// Calls body.operator()<T>() for the type of the values of x.
template <typename Body>
void with_type(const Tensor& x, Body body) {
  const ScalarType type = x.scalar_type();
  if (type == ScalarType::Float) return body.template operator()<float>();
  if (type == ScalarType::Half) return body.template operator()<Half>();
  STD_TORCH_CHECK(type == ScalarType::BFloat16, "norm_act_pad: x has an unsupported dtype");
  body.template operator()<BFloat16>();
}

}  // namespace
