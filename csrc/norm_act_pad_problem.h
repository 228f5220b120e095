#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <string>

#include "norm_act_pad_tiles.h"

// The shapes of norm_act_pad: what is worked on together, and where the padding comes from.
namespace {

using torch::headeronly::MemoryFormat;
using torch::stable::Tensor;

// A task should have this many values: 32768 floats are 128 KiB, some 20 us; two such arrays fit
// into the second-level cache, so that the two passes over a chunk read memory once.
constexpr int64_t kChunk = 32768;
// The floats of a tile: with its buffers it fits into the first-level cache.
constexpr int64_t kTile = 2048;
// At least 1 KiB of lanes: long loops, and sums that do not wait for each other.
constexpr int64_t kLanes = 256;

enum class Padding { none, reflect, replicate, zero };

Act act_of(const std::string& name) {
  if (name == "none") return Act::none;
  if (name == "relu") return Act::relu;
  if (name == "leaky_relu") return Act::leaky_relu;
  STD_TORCH_CHECK(name == "tanh", "norm_act_pad: unknown act ", name);
  return Act::tanh;
}

Padding padding_of(const std::string& name) {
  if (name == "none") return Padding::none;
  if (name == "reflect") return Padding::reflect;
  if (name == "replicate") return Padding::replicate;
  STD_TORCH_CHECK(name == "zero", "norm_act_pad: unknown padding ", name);
  return Padding::zero;
}

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

using Buffer = std::unique_ptr<float[]>;
Buffer uninitialised(int64_t size) { return std::make_unique_for_overwrite<float[]>(size); }

struct Problem {
  int64_t images, channels, height, width, pad;
  Act act;
  float slope;
  Padding padding;
  int64_t pixels_per_step = 1;  // a power of two
  int64_t lanes = 0, tile_pixels = 0, tile = 0;

  void choose_tiles() {
    while (channels * pixels_per_step < kLanes) pixels_per_step *= 2;
    lanes = channels * pixels_per_step;
    tile_pixels = pixels_per_step * std::max<int64_t>(1, kTile / lanes);
    tile = tile_pixels * channels;
  }
  int64_t pixels() const { return height * width; }
  int64_t padded_width() const { return width + 2 * pad; }
  int64_t padded_height() const { return height + 2 * pad; }

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

  // Calls body(image) for all images: several at a time where they are many or small, otherwise one
  // by one, and body is parallel itself. Results do not depend on it.
  template <typename Body>
  void for_each_image(Body body) const {
    const int64_t size = pixels() * channels;
    const bool together = images >= 4 * torch::stable::get_num_threads() || size < 2 * kChunk;
    const int64_t grain = together ? ceil_div(kChunk, size) : images;
    torch::stable::parallel_for(0, images, grain, [&](int64_t begin, int64_t end) {
      for (int64_t image = begin; image < end; ++image) body(image);
    });
  }

  // The index in a row (or column) of `size` that lies at `index` of the padded one, -1 for none.
  int64_t source(int64_t index, int64_t size) const {
    int64_t i = index - pad;
    if (i >= 0 && i < size) return i;
    if (padding == Padding::zero) return -1;
    if (padding == Padding::replicate) return i < 0 ? 0 : size - 1;
    i = i < 0 ? -i : i;
    return i < size ? i : 2 * (size - 1) - i;
  }

  // Calls body(index) for each index of the padded row that `i` of the row is copied to in addition
  // to i + pad.
  template <typename Body>
  void for_each_mirror(int64_t i, int64_t size, Body body) const {
    if (padding == Padding::reflect) {
      if (i >= 1 && i <= pad) body(pad - i);
      if (i <= size - 2 && i >= size - 1 - pad) body(pad + 2 * (size - 1) - i);
    } else if (padding == Padding::replicate) {
      for (int64_t k = 0; k < pad && i == 0; ++k) body(k);
      for (int64_t k = 0; k < pad && i == size - 1; ++k) body(pad + size + k);
    }
  }
};

// The format of y and dx: channels_last where x is that and not contiguous as well.
MemoryFormat format_of(const Tensor& x) {
  if (x.is_contiguous()) return MemoryFormat::Contiguous;
  int64_t dense = 1;
  for (const int64_t dim : {1, 3, 2, 0}) {
    if (x.size(dim) != 1 && x.stride(dim) != dense) return MemoryFormat::Contiguous;
    dense *= x.size(dim);
  }
  return MemoryFormat::ChannelsLast;
}

Problem problem_of(const Tensor& x, MemoryFormat format, const std::string& act, double slope,
                   const std::string& padding, int64_t pad) {
  const bool last = format == MemoryFormat::ChannelsLast;
  Problem problem{
      .images = last ? x.size(0) : x.size(0) * x.size(1),
      .channels = last ? x.size(1) : 1,
      .height = x.size(2),
      .width = x.size(3),
      .pad = pad,
      .act = act_of(act),
      .slope = static_cast<float>(slope),
      .padding = padding_of(padding),
  };
  const int64_t limit = problem.padding == Padding::none      ? 1
                        : problem.padding == Padding::reflect ? std::min(x.size(2), x.size(3))
                                                              : INT64_MAX;
  STD_TORCH_CHECK(x.size(2) > 0 && x.size(3) > 0 && pad >= 0 && pad < limit,
                  "norm_act_pad: pad does not suit x");
  problem.choose_tiles();
  return problem;
}

}  // namespace
