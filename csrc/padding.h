#pragma once

#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdint>
#include <string>

#include "pictures.h"
#include "tiles.h"

// Where the padding of a picture comes from, and where its gradient goes.
namespace {

enum class Mode { none, reflect, replicate, zero };

struct Padding {
  Mode mode;
  int64_t pad;

  // The index in a row (or column) of `size` that lies at `index` of the padded one, -1 for none.
  int64_t source(int64_t index, int64_t size) const {
    int64_t i = index - pad;
    if (i >= 0 && i < size) return i;
    if (mode == Mode::zero) return -1;
    if (mode == Mode::replicate) return i < 0 ? 0 : size - 1;
    i = i < 0 ? -i : i;
    return i < size ? i : 2 * (size - 1) - i;
  }

  // Calls body(index) for each index of the padded row that `i` of the row is copied to in addition
  // to i + pad.
  template <typename Body>
  void for_each_mirror(int64_t i, int64_t size, Body body) const {
    if (mode == Mode::reflect) {
      if (i >= 1 && i <= pad) body(pad - i);
      if (i <= size - 2 && i >= size - 1 - pad) body(pad + 2 * (size - 1) - i);
    } else if (mode == Mode::replicate) {
      for (int64_t k = 0; k < pad && i == 0; ++k) body(k);
      for (int64_t k = 0; k < pad && i == size - 1; ++k) body(pad + size + k);
    }
  }

  // So many rows (or columns) at each end have more copies than one, at most.
  int64_t reach() const {
    if (pad == 0) return 0;
    return mode == Mode::reflect ? pad + 1 : mode == Mode::replicate;
  }
};

inline Padding padding_of(const std::string& name, int64_t pad, int64_t height, int64_t width) {
  const Mode mode = name == "none"        ? Mode::none
                    : name == "reflect"   ? Mode::reflect
                    : name == "replicate" ? Mode::replicate
                                          : Mode::zero;
  STD_TORCH_CHECK(mode != Mode::zero || name == "zero", "norm_act_pad: unknown padding ", name);
  const int64_t limit = mode == Mode::none      ? 1
                        : mode == Mode::reflect ? std::min(height, width)
                                                : INT64_MAX;
  STD_TORCH_CHECK(height > 0 && width > 0 && pad >= 0 && pad < limit,
                  "norm_act_pad: pad does not suit x");
  return {mode, pad};
}

// The gradient of the padding of `pictures`, whose padded ones have the gradient `dy`.
template <typename T>
struct Folding {
  Pictures pictures;
  Padding padding;
  Rows<const T> dy;

  // Columns [first, last) of a row: the sum of all copies of each pixel, where it lies in dy or in
  // `buffer`.
  const float* tile(int64_t image, int64_t row, int64_t first, int64_t last, float* buffer) const {
    const int64_t channels = pictures.channels, width = pictures.width, pad = padding.pad;
    const int64_t count = (last - first) * channels;
    const auto at = [&](int64_t r, int64_t column) { return dy.at(image, r) + column * channels; };
    const int64_t left = std::clamp(padding.reach(), first, last);
    const int64_t right = std::clamp(width - padding.reach(), left, last);
    int64_t mirrors = 0;
    padding.for_each_mirror(row, pictures.height, [&](int64_t) { ++mirrors; });
    if (mirrors == 0 && left == first && right == last) {
      return load_tile(at(row + pad, first + pad), count, buffer);
    }
    const auto add_mirrors = [&](int64_t r, int64_t begin, int64_t end) {
      for (int64_t column = begin; column < end; ++column) {
        padding.for_each_mirror(column, width, [&](int64_t mirror) {
          add_tile(at(r, mirror), channels, buffer + (column - first) * channels);
        });
      }
    };
    copy_tile(at(row + pad, first + pad), count, buffer);
    add_mirrors(row + pad, first, left);
    add_mirrors(row + pad, right, last);
    padding.for_each_mirror(row, pictures.height, [&](int64_t r) {
      add_tile(at(r, first + pad), count, buffer);
      add_mirrors(r, first, left);
      add_mirrors(r, right, last);
    });
    return buffer;
  }
};

}  // namespace
