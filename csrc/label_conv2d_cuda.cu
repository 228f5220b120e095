#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <string>
#include <tuple>

#include "label_conv2d_backward.cuh"

namespace {

using namespace pix2pixhd_fast;
using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

Padding padding_of(const std::string& name) {
  if (name == "none") return Padding::kNone;
  if (name == "zero") return Padding::kZero;
  if (name == "reflect") return Padding::kReflect;
  STD_TORCH_CHECK(name == "replicate", "label_conv2d: unknown padding ", name);
  return Padding::kReplicate;
}

// What values below zero are multiplied by.
float below_of(const std::string& act, double slope) {
  if (act == "none") return 1.0f;
  if (act == "relu") return 0.0f;
  STD_TORCH_CHECK(act == "leaky_relu", "label_conv2d: act must keep the sign, got ", act);
  return static_cast<float>(slope);
}

// Checks what memory safety needs: labels and edges, sizes, padding.
LabelCall checked_call(const Tensor& labels, const std::optional<Tensor>& edges, int64_t num_labels,
                       int64_t channels, int64_t kernel_height, int64_t kernel_width, int64_t level,
                       int64_t stride, const std::string& padding, int64_t pad) {
  STD_TORCH_CHECK(labels.dim() == 4 && labels.size(1) == 1,
                  "label_conv2d: labels must be [N, 1, H, W]");
  STD_TORCH_CHECK(
      labels.scalar_type() == ScalarType::Byte || labels.scalar_type() == ScalarType::Int,
      "label_conv2d: labels must be uint8 or int32");
  if (edges) {
    STD_TORCH_CHECK(edges->scalar_type() == ScalarType::Byte && edges->dim() == 4 &&
                        edges->size(0) == labels.size(0) && edges->size(1) == 1 &&
                        edges->size(2) == labels.size(2) && edges->size(3) == labels.size(3),
                    "label_conv2d: edges must be uint8 and of the shape of labels");
  }
  STD_TORCH_CHECK(level >= 0 && level <= 2, "label_conv2d: level must be 0, 1 or 2");
  STD_TORCH_CHECK(num_labels >= 1 && stride >= 1 && kernel_height >= 1 && kernel_width >= 1,
                  "label_conv2d: num_labels, stride and kernel must be at least 1");
  const LabelCall call{labels.size(0),
                       labels.size(2),
                       labels.size(3),
                       channels,
                       kernel_height,
                       kernel_width,
                       stride,
                       pad,
                       padding_of(padding),
                       num_labels,
                       edges.has_value(),
                       static_cast<int>(level)};
  const int64_t height = LabelConv::pooled_size(call.height, call.level);
  const int64_t width = LabelConv::pooled_size(call.width, call.level);
  const int64_t limit = call.padding == Padding::kNone      ? 1
                        : call.padding == Padding::kReflect ? (height < width ? height : width)
                                                            : INT32_MAX;
  STD_TORCH_CHECK(pad >= 0 && pad < limit && height > 0 && width > 0 &&
                      height + 2 * pad >= kernel_height && width + 2 * pad >= kernel_width,
                  "label_conv2d: pad or kernel does not suit the map");
  STD_TORCH_CHECK(
      fits(call),
      "label_conv2d: no CUDA kernel is for maps, channels, labels or strides of this size");
  return call;
}

template <typename T>
T* data(const Tensor& tensor) {
  return static_cast<T*>(tensor.mutable_data_ptr());
}

template <typename T>
const T* data(const std::optional<Tensor>& tensor) {
  return tensor ? static_cast<const T*>(tensor->const_data_ptr()) : nullptr;
}

std::optional<Tensor> contiguous(const std::optional<Tensor>& tensor, MemoryFormat format) {
  return tensor ? std::optional(torch::stable::contiguous(*tensor, format)) : std::nullopt;
}

// The codes of a call, and the memory that they lie in.
struct Codes {
  Tensor labels;
  std::optional<Tensor> edges, pooled, mixtures;
  Level level;

  Codes(const LabelCall& call, const LabelConv& conv, const Tensor& given,
        const std::optional<Tensor>& given_edges)
      : labels(torch::stable::contiguous(given)),
        edges(contiguous(given_edges, MemoryFormat::Contiguous)) {
    if (call.level > 0) {
      const int64_t pixels = call.count * conv.height * conv.width;
      pooled = torch::stable::new_empty(labels, {pixels}, ScalarType::Short);
      mixtures = torch::stable::new_empty(labels, {pixels * mixture_slots(call)}, ScalarType::Int);
    }
    level = make_level(call, labels.const_data_ptr(), labels.scalar_type() == ScalarType::Int,
                       data<uint8_t>(edges), pooled ? data<uint16_t>(*pooled) : nullptr,
                       mixtures ? data<uint32_t>(*mixtures) : nullptr);
  }
};

cudaStream_t stream_of(const Tensor& tensor) {
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(
      aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream));
  return static_cast<cudaStream_t>(stream);
}

// Calls body.operator()<T>() for the type of the values of x.
template <typename Body>
void with_type(const Tensor& x, Body body) {
  const ScalarType type = x.scalar_type();
  if (type == ScalarType::Float) return body.template operator()<float>();
  if (type == ScalarType::Half) return body.template operator()<__half>();
  STD_TORCH_CHECK(type == ScalarType::BFloat16, "label_conv2d: values have an unsupported dtype");
  body.template operator()<__nv_bfloat16>();
}

// bias: null where it is dead.
void check_values(const LabelConv& conv, const Tensor& weight, const std::optional<Tensor>& bias,
                  const std::optional<Tensor>& addend) {
  STD_TORCH_CHECK(weight.size(1) == conv.inputs(),
                  "label_conv2d: weight must be [K, labels (+ 1), kh, kw]");
  STD_TORCH_CHECK(!bias || (bias->scalar_type() == weight.scalar_type() && bias->dim() == 1 &&
                            bias->size(0) == conv.channels),
                  "label_conv2d: bias must be [K] in the dtype of weight");
  STD_TORCH_CHECK(
      !addend || (addend->scalar_type() == weight.scalar_type() && addend->dim() == 4 &&
                  addend->size(0) == conv.count && addend->size(1) == conv.channels &&
                  addend->size(2) == conv.out_height && addend->size(3) == conv.out_width),
      "label_conv2d: addend must be of the shape and dtype of the result");
}

std::tuple<Tensor, Tensor, Tensor> label_conv2d_cuda(
    const Tensor& labels, const std::optional<Tensor>& edges, const Tensor& weight,
    const std::optional<Tensor>& bias, const std::optional<Tensor>& addend, int64_t num_labels,
    int64_t level, int64_t stride, std::string padding, int64_t pad, bool dead_bias,
    std::string act, double slope, std::optional<double> eps) {
  STD_TORCH_CHECK(weight.dim() == 4, "label_conv2d: weight must be [K, labels (+ 1), kh, kw]");
  const LabelCall call = checked_call(labels, edges, num_labels, weight.size(0), weight.size(2),
                                      weight.size(3), level, stride, padding, pad);
  const LabelConv conv(call);
  const auto used_bias = dead_bias ? std::nullopt : contiguous(bias, MemoryFormat::Contiguous);
  check_values(conv, weight, used_bias, addend);
  const torch::stable::accelerator::DeviceGuard guard(weight.get_device_index());
  const auto floats = [&](std::initializer_list<int64_t> sizes) {
    return torch::stable::new_empty(weight, sizes, ScalarType::Float);
  };
  Tensor y = torch::stable::empty({call.count, call.channels, conv.out_height, conv.out_width},
                                  weight.scalar_type(), std::nullopt, weight.device(), std::nullopt,
                                  MemoryFormat::ChannelsLast);
  Tensor mean = eps ? floats({call.count, call.channels}) : floats({0});
  Tensor rstd = eps ? floats({call.count, call.channels}) : floats({0});
  if (y.numel() == 0) {
    return {y, mean, rstd};
  }
  const Codes codes(call, conv, labels, edges);
  const auto added = contiguous(addend, MemoryFormat::ChannelsLast);
  const int channels = Tables::channels_of(conv);
  Tensor rows = floats({conv.codes(), conv.steps(), channels});
  Tensor sums = floats({conv.codes() + 1, channels});
  Tensor parts = eps ? floats({call.count, conv.tiles(), 2, call.channels}) : floats({0});
  with_type(weight, [&]<typename T>() {
    const Weights<T> weights{static_cast<const T*>(weight.const_data_ptr()),
                             data<T>(used_bias),
                             weight.stride(0),
                             weight.stride(1),
                             weight.stride(2),
                             weight.stride(3)};
    STD_CUDA_CHECK(launch_label_conv2d(conv, codes.level, weights, data<T>(added),
                                       Tables{data<float>(rows), data<float>(sums), channels},
                                       below_of(act, slope), eps ? data<float>(parts) : nullptr,
                                       static_cast<float>(eps.value_or(0)), data<T>(y),
                                       data<float>(mean), data<float>(rstd), stream_of(weight)));
  });
  return {y, mean, rstd};
}

std::tuple<Tensor, Tensor> label_conv2d_backward_cuda(const Tensor& given, const Tensor& labels,
                                                      const std::optional<Tensor>& edges,
                                                      int64_t num_labels, int64_t kernel_height,
                                                      int64_t kernel_width, int64_t level,
                                                      int64_t stride, std::string padding,
                                                      int64_t pad) {
  STD_TORCH_CHECK(given.dim() == 4, "label_conv2d: dy must be [N, K, H, W]");
  const LabelCall call = checked_call(labels, edges, num_labels, given.size(1), kernel_height,
                                      kernel_width, level, stride, padding, pad);
  const LabelConv conv(call);
  STD_TORCH_CHECK(given.size(0) == conv.count && given.size(2) == conv.out_height &&
                      given.size(3) == conv.out_width,
                  "label_conv2d: dy must be of the shape of the result");
  const torch::stable::accelerator::DeviceGuard guard(given.get_device_index());
  const auto scratch = [&](std::initializer_list<int64_t> sizes, ScalarType type) {
    return torch::stable::new_empty(given, sizes, type);
  };
  const auto type = given.scalar_type();
  Tensor dweight = scratch({call.channels, conv.inputs(), kernel_height, kernel_width}, type);
  Tensor dbias = scratch({call.channels}, type);
  if (given.numel() == 0) {
    return {torch::stable::zero_(dweight), torch::stable::zero_(dbias)};
  }
  const Tensor dy = torch::stable::contiguous(given, MemoryFormat::ChannelsLast);
  const Codes codes(call, conv, labels, edges);
  const BackwardPlan plan(conv);
  Tensor classes = scratch({plan.tiles, kTilePixels}, ScalarType::Short);
  Tensor mixed = scratch({plan.tiles, kTilePixels}, ScalarType::Short);
  Tensor counts = scratch({plan.tiles}, ScalarType::Int);
  Tensor uniform =
      scratch({plan.uniform_splits, conv.inputs() + 1, call.channels}, ScalarType::Float);
  Tensor steps =
      scratch({plan.mixed_splits, conv.inputs(), conv.steps(), call.channels}, ScalarType::Float);
  const BackwardSums sums{data<uint16_t>(classes), data<uint16_t>(mixed), data<int>(counts),
                          data<float>(uniform), data<float>(steps)};
  with_type(dy, [&]<typename T>() {
    STD_CUDA_CHECK(launch_label_conv2d_backward(conv, codes.level, sums,
                                                static_cast<const T*>(dy.const_data_ptr()),
                                                data<T>(dweight), data<T>(dbias), stream_of(dy)));
  });
  return {dweight, dbias};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pix2pixhd_fast, CUDA, m) {
  m.impl("label_conv2d", TORCH_BOX(&label_conv2d_cuda));
  m.impl("label_conv2d_backward", TORCH_BOX(&label_conv2d_backward_cuda));
}
