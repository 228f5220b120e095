#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdint>
#include <memory>

#include "code_words.h"
#include "pictures.h"

// What the kernels of ops/relu_codes.py share: how they walk through memory, and their checks.
namespace {

// All pixels of all images one after another, in tiles of whole pixels and whole words.
struct Pixels {
  int64_t channels, values, lanes, tile, chunk;

  Pixels(int64_t channel_count, int64_t value_count)
      : channels(channel_count), values(value_count), lanes(channels) {
    while (lanes < kLanes) lanes *= 2;
    // A multiple of lanes and of 8.
    tile = lanes * kGroup * std::max<int64_t>(1, kTile / (lanes * kGroup));
    chunk = tile * std::max<int64_t>(1, kChunk / tile);
  }
  explicit Pixels(const Tensor& x) : Pixels(std::max<int64_t>(1, x.size(1)), x.numel()) {}

  int64_t chunks() const { return ceil_div(values, chunk); }

  // Calls body(chunk, first value, number of values, floats, codes) for all tiles; the two buffers
  // have `buffers` tiles and one tile.
  template <typename Body>
  void for_each_tile(int64_t buffers, Body body) const {
    parallel_for(0, chunks(), 1, [&](int64_t begin, int64_t end) {
      const Buffer floats = uninitialised(buffers * tile);
      const auto codes = std::make_unique_for_overwrite<uint8_t[]>(tile);
      for (int64_t first = begin * chunk; first < std::min(values, end * chunk); first += tile) {
        const int64_t count = std::min(tile, values - first);
        body(first / chunk, first, count, floats.get(), codes.get());
      }
    });
  }

  // [channels] -> [lanes]
  Buffer repeated(const Tensor& bias) const {
    const Tensor floats = torch::stable::contiguous(torch::stable::to(bias, ScalarType::Float));
    const auto* from = static_cast<const float*>(floats.const_data_ptr());
    Buffer all = uninitialised(lanes);
    for (int64_t i = 0; i < lanes; ++i) all[i] = from[i % channels];
    return all;
  }
};

[[gnu::always_inline]] inline float relu(float z) { return z <= 0.0f ? 0.0f : z; }

inline Tensor new_codes(int64_t elements, int bits) {
  return torch::stable::empty({code_bytes(elements, bits)}, ScalarType::Byte);
}

// Whether the values lie one after another, pixel by pixel; the stable API does not tell.
inline bool is_channels_last(const Tensor& x) {
  if (x.dim() != 4) return false;
  if (x.numel() == 0) return true;
  int64_t stride = 1;
  for (const int64_t dim : {1, 3, 2, 0}) {
    if (x.size(dim) > 1 && x.stride(dim) != stride) return false;
    stride *= x.size(dim);
  }
  return true;
}

inline void check_picture(const Tensor& x, const char* name) {
  STD_TORCH_CHECK(is_channels_last(x), "relu codes: ", name,
                  " must be a dense [N, C, H, W] in channels_last");
}

inline void check_bias(const Tensor& bias, const Tensor& x) {
  check_picture(x, "x");
  STD_TORCH_CHECK(bias.dim() == 1 && bias.size(0) == x.size(1), "relu codes: bias must be [C]");
}

inline void check_codes(const Tensor& codes, const Tensor& g, int bits) {
  check_picture(g, "g");
  STD_TORCH_CHECK(codes.dim() == 1 && codes.is_contiguous() &&
                      codes.scalar_type() == ScalarType::Byte &&
                      codes.size(0) == code_bytes(g.numel(), bits),
                  "relu codes: the codes do not match g");
}

inline uint8_t* bytes_of(Tensor& codes) { return static_cast<uint8_t*>(codes.mutable_data_ptr()); }
inline const uint8_t* bytes_of(const Tensor& codes) {
  return static_cast<const uint8_t*>(codes.const_data_ptr());
}

}  // namespace
