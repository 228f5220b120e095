#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdint>

#include "simd.h"

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Nonzero where `id` differs from one of its neighbours.
template <typename T>
T difference(T id, T left, T right, T above, T below) {
  return (id ^ left) | (id ^ right) | (id ^ above) | (id ^ below);
}

// One row of [W]. `above` and `below` are the row itself at the border of the picture.
template <typename T>
[[gnu::always_inline]] inline void mark_row(const T* row, const T* above, const T* below,
                                            uint8_t* edges, int64_t width) {
  const int64_t last = width - 1;
  for (int64_t x = 1; x < last; ++x) {
    edges[x] = difference(row[x], row[x - 1], row[x + 1], above[x], below[x]) != 0;
  }
  const int64_t second = std::min<int64_t>(1, last);
  edges[0] = difference(row[0], row[0], row[second], above[0], below[0]) != 0;
  edges[last] = difference(row[last], row[last - second], row[last], above[last], below[last]) != 0;
}

PIX2PIXHD_FAST_SIMD
void mark(const int32_t* row, const int32_t* above, const int32_t* below, uint8_t* edges,
          int64_t width) {
  mark_row(row, above, below, edges, width);
}

PIX2PIXHD_FAST_SIMD
void mark(const int64_t* row, const int64_t* above, const int64_t* below, uint8_t* edges,
          int64_t width) {
  mark_row(row, above, below, edges, width);
}

template <typename T>
void mark_rows(const T* ids, uint8_t* edges, int64_t rows, int64_t height, int64_t width) {
  // At least 32768 pixels, some 10 us, for each thread.
  const int64_t grain = std::max<int64_t>(1, 32768 / width);
  torch::stable::parallel_for(0, rows, grain, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const int64_t y = r % height;
      const T* row = ids + r * width;
      mark(row, y > 0 ? row - width : row, y + 1 < height ? row + width : row, edges + r * width,
           width);
    }
  });
}

Tensor instance_boundaries_cpu(const Tensor& given) {
  const auto type = given.scalar_type();
  STD_TORCH_CHECK(type == ScalarType::Int || type == ScalarType::Long,
                  "instance_boundaries: ids must be int32 or int64");
  STD_TORCH_CHECK(given.dim() == 4, "instance_boundaries: ids must be [N, 1, H, W]");
  const Tensor ids = torch::stable::contiguous(given);
  Tensor edges = torch::stable::empty(ids.sizes(), ScalarType::Byte);
  if (ids.numel() == 0) {
    return edges;
  }
  const int64_t height = ids.size(2);
  const int64_t width = ids.size(3);
  const int64_t rows = ids.numel() / width;
  uint8_t* out = edges.mutable_data_ptr<uint8_t>();
  if (type == ScalarType::Int) {
    mark_rows(ids.const_data_ptr<int32_t>(), out, rows, height, width);
  } else {
    mark_rows(ids.const_data_ptr<int64_t>(), out, rows, height, width);
  }
  return edges;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pix2pixhd_fast, CPU, m) {
  m.impl("instance_boundaries", TORCH_BOX(&instance_boundaries_cpu));
}
