#include <torch/csrc/stable/library.h>

#include <string>

#include "padding.h"
#include "pictures.h"
#include "tiles.h"

namespace {

// Calls body(image, row, first column, last column) for all tiles of all rows, in parallel.
template <typename Body>
void for_each_tile(const Pictures& pictures, Body body) {
  const int64_t rows = pictures.images * pictures.height;
  parallel_for(0, rows, ceil_div(kChunk, pictures.row_size()), [&](int64_t begin, int64_t end) {
    const Buffer scratch = uninitialised(2 * pictures.tile);
    for (int64_t i = begin; i < end; ++i) {
      pictures.for_each_tile([&](int64_t first, int64_t last) {
        body(i / pictures.height, i % pictures.height, first, last, scratch.get());
      });
    }
  });
}

Tensor fold_cpu(const Tensor& given, std::string padding_name, int64_t pad) {
  const MemoryFormat format = format_of(given);
  const int64_t height = given.size(2) - 2 * pad, width = given.size(3) - 2 * pad;
  const Pictures pictures(format, given.size(0), given.size(1), height, width);
  const Padding padding = padding_of(padding_name, pad, height, width);
  Tensor dx = new_tensor(format, given, height, width);
  if (dx.numel() == 0) return dx;
  const Tensor dy = with_rows(given, format);
  with_type(dy, [&]<typename T>() {
    const Folding<T> folding{pictures, padding, rows_of<const T>(dy, format)};
    const Rows<T> to = rows_of<T>(dx, format);
    const auto write = [&](int64_t image, int64_t row, int64_t first, int64_t last, float* buffer) {
      const float* sums = folding.tile(image, row, first, last, buffer);
      write_tile(sums, (last - first) * pictures.channels,
                 to.at(image, row) + first * pictures.channels);
    };
    for_each_tile(pictures, write);
  });
  return dx;
}

void fold_add_cpu(Tensor given, const Tensor& given_dy, int64_t border, std::string padding_name,
                  int64_t pad) {
  const MemoryFormat format = format_of(given);
  const int64_t height = given.size(2) - 2 * border, width = given.size(3) - 2 * border;
  STD_TORCH_CHECK(border >= 0, "fold_add_: border must not be negative");
  const Pictures pictures(format, given.size(0), given.size(1), height, width);
  const Padding padding = padding_of(padding_name, pad, height, width);
  check_alike(given_dy, given, pad - border, "dy");
  if (pictures.empty()) return;
  Tensor dx = with_rows(given, format);
  const Tensor dy = with_rows(given_dy, format);
  with_type(dx, [&]<typename T>() {
    const Folding<T> folding{pictures, padding, rows_of<const T>(dy, format)};
    const Rows<T> all = rows_of<T>(dx, format);
    const auto add = [&](int64_t image, int64_t row, int64_t first, int64_t last, float* buffer) {
      const int64_t n = (last - first) * pictures.channels;
      const float* sums = folding.tile(image, row, first, last, buffer);
      T* to = all.at(image, row + border) + (first + border) * pictures.channels;
      float* floats = tile_to_change(to, n, buffer + pictures.tile);
      add_tile(sums, n, floats);
      store_tile(floats, n, to);
    };
    for_each_tile(pictures, add);
  });
  // with_rows may have made a copy.
  if (dx.const_data_ptr() != given.const_data_ptr()) torch::stable::copy_(given, dx);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pix2pixhd_fast, CPU, m) {
  m.impl("fold", TORCH_BOX(&fold_cpu));
  m.impl("fold_add_", TORCH_BOX(&fold_add_cpu));
}
