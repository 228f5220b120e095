#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>
#include <string>
#include <utility>

#include "label_cells.h"
#include "padding.h"
#include "pictures.h"

namespace {

// What a call is given, checked.
struct LabelProblem {
  Tensor labels;
  std::optional<Tensor> edges;
  int64_t num_labels, level;
  Padding padding;
  Windows windows;

  LabelProblem(const Tensor& given, const std::optional<Tensor>& given_edges, int64_t num_labels,
               int64_t kernel_height, int64_t kernel_width, int64_t level, int64_t stride,
               const std::string& padding_name, int64_t pad)
      : labels(torch::stable::contiguous(given)),
        num_labels(num_labels),
        level(level),
        padding{Mode::none, 0},
        windows{kernel_height, kernel_width, stride, 0, 0} {
    check(given_edges);
    if (given_edges) edges = torch::stable::contiguous(*given_edges);
    int64_t height = labels.size(2), width = labels.size(3);
    for (int64_t i = 0; i < level; ++i) height = ceil_div(height, 2), width = ceil_div(width, 2);
    padding = padding_of(padding_name, pad, height, width);
    STD_TORCH_CHECK(kernel_height > 0 && kernel_width > 0 && height + 2 * pad >= kernel_height &&
                        width + 2 * pad >= kernel_width,
                    "label_conv2d: the kernel must fit into the padded picture");
    windows.rows = (height + 2 * pad - kernel_height) / stride + 1;
    windows.columns = (width + 2 * pad - kernel_width) / stride + 1;
  }

  void check(const std::optional<Tensor>& given_edges) const {
    STD_TORCH_CHECK(labels.dim() == 4 && labels.size(1) == 1,
                    "label_conv2d: labels must be [N, 1, H, W]");
    const ScalarType type = labels.scalar_type();
    STD_TORCH_CHECK(type == ScalarType::Byte || type == ScalarType::Int,
                    "label_conv2d: labels must be uint8 or int32");
    STD_TORCH_CHECK(
        num_labels > 0 && num_labels < (int64_t{1} << 29) && windows.stride > 0 && level >= 0,
        "label_conv2d: num_labels, stride or level out of range");
    if (given_edges) {
      STD_TORCH_CHECK(
          given_edges->scalar_type() == ScalarType::Byte && given_edges->numel() == labels.numel(),
          "label_conv2d: edges must be uint8 like labels");
    }
  }

  int64_t images() const { return labels.size(0); }
  int64_t codes() const { return (num_labels + 1) * (edges ? 2 : 1); }
  int64_t channels() const { return num_labels + (edges ? 1 : 0); }

  // Calls body.operator()<Code>() with a type for the codes: bytes where they suffice.
  template <typename Body>
  void with_code(Body body) const {
    if (codes() <= kMixed<uint8_t>) return body.template operator()<uint8_t>();
    body.template operator()<int32_t>();
  }

  template <typename Code>
  PaddedCells<Code> cells(int64_t image) const {
    const int64_t height = labels.size(2), width = labels.size(3);
    const int64_t first = image * height * width;
    const uint8_t* marks =
        edges ? static_cast<const uint8_t*>(edges->const_data_ptr()) + first : nullptr;
    const void* ids = labels.const_data_ptr();
    Cells<Code> found = labels.scalar_type() == ScalarType::Byte
                            ? read_cells<Code>(static_cast<const uint8_t*>(ids) + first, marks,
                                               num_labels, height, width)
                            : read_cells<Code>(static_cast<const int32_t*>(ids) + first, marks,
                                               num_labels, height, width);
    for (int64_t i = 0; i < level; ++i) found = pool(found, codes());
    return PaddedCells<Code>(std::move(found), padding, num_labels, windows);
  }
};

}  // namespace
