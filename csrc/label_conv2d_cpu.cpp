#include <torch/csrc/stable/library.h>

#include <optional>
#include <string>
#include <tuple>

#include "activations.h"
#include "chunk_statistics.h"
#include "label_cells.h"
#include "label_problem.h"
#include "pictures.h"
#include "tiles.h"

namespace {

// to = kCount lanes of `count` windows side by side, `step` apart.
template <int kCount, typename Code>
[[gnu::always_inline]] inline void gather_lanes(const Window<Code>& window, const float* table,
                                                const float* bias, int64_t count, int64_t step,
                                                float* to) {
  for (int64_t i = 0; i < count; ++i) {
    for (int n = 0; n < kCount; ++n)
      lanes_at(to + i * step + n * kLane) = lanes_at(bias + n * kLane);
  }
  const auto same = [=](int64_t row, int64_t begin, int64_t end) __attribute__((always_inline)) {
    Lanes values[kCount];
    for (int n = 0; n < kCount; ++n) values[n] = lanes_at(table + row + n * kLane);
    for (int64_t i = begin; i < end; ++i) {
      for (int n = 0; n < kCount; ++n) lanes_at(to + i * step + n * kLane) += values[n];
    }
  };
  const auto mixture = [=, &window](const Part* part, int64_t tap, int64_t i)
                           __attribute__((always_inline)) {
                             Lanes sums[kCount];
                             for (int n = 0; n < kCount; ++n)
                               sums[n] = lanes_at(to + i * step + n * kLane);
                             for (; part->code >= 0; ++part) {
                               const float* from = table + window.row_of(part->code, tap);
                               for (int n = 0; n < kCount; ++n)
                                 sums[n] += part->share * lanes_at(from + n * kLane);
                             }
                             for (int n = 0; n < kCount; ++n)
                               lanes_at(to + i * step + n * kLane) = sums[n];
                           };
  window.for_each_place(count, same, mixture);
}

template <typename Code>
[[gnu::always_inline]] inline void gather_windows(Window<Code> window, const float* table,
                                                  const float* bias, int64_t count, float* to) {
  const int64_t pitch = window.pitch;
  for (int64_t first = 0; first < count; first += kSideBySide, to += kSideBySide * pitch) {
    const int64_t some = std::min(kSideBySide, count - first);
    int64_t at = 0;
    for (; at + 8 * kLane <= pitch; at += 8 * kLane) {
      gather_lanes<8>(window, table + at, bias + at, some, pitch, to + at);
    }
    for (; at + 4 * kLane <= pitch; at += 4 * kLane) {
      gather_lanes<4>(window, table + at, bias + at, some, pitch, to + at);
    }
    for (; at < pitch; at += kLane) {
      gather_lanes<1>(window, table + at, bias + at, some, pitch, to + at);
    }
    window.advance(some);
  }
}

// to [count, window.pitch] = the convolution at `count` windows side by side.
PIX2PIXHD_FAST_SIMD
void gather(const Window<uint8_t>& window, const float* table, const float* bias, int64_t count,
            float* to) {
  gather_windows(window, table, bias, count, to);
}

PIX2PIXHD_FAST_SIMD
void gather(const Window<int32_t>& window, const float* table, const float* bias, int64_t count,
            float* to) {
  gather_windows(window, table, bias, count, to);
}

// to [count, pitch] = the row [pitch] over and over.
PIX2PIXHD_FAST_SIMD
void fill(const float* row, int64_t pitch, int64_t count, float* to) {
  for (int64_t at = 0; at < pitch; at += kLane) {
    const Lanes value = lanes_at(row + at);
    for (int64_t i = 0; i < count; ++i) lanes_at(to + i * pitch + at) = value;
  }
}

PIX2PIXHD_FAST_SIMD
void activate_tile(Act act, float slope, int64_t count, float* values) {
  with_act(act, [=]<Act a>() __attribute__((always_inline)) {
    for (int64_t i = 0; i < count; ++i) values[i] = activate<a>(values[i], slope);
  });
}

// What each code adds at each tap, and what a window of one code gives.
struct Tables {
  int64_t pitch;
  Buffer taps;     // [codes, entries, pitch]
  Buffer windows;  // [codes, pitch], with the bias
  Buffer bias;     // [pitch]

  Tables(const LabelProblem& problem, const Tensor& weight, const std::optional<Tensor>& given)
      : pitch(ceil_div(weight.size(0), kLane) * kLane),
        taps(uninitialised(problem.codes() * problem.windows.entries() * pitch)),
        windows(uninitialised(problem.codes() * pitch)),
        bias(uninitialised(pitch)) {
    const int64_t outputs = weight.size(0);
    std::fill_n(bias.get(), pitch, 0.0f);
    if (given) {
      const Tensor values = torch::stable::contiguous(torch::stable::to(*given, ScalarType::Float));
      std::copy_n(static_cast<const float*>(values.const_data_ptr()), outputs, bias.get());
    }
    const Tensor values = torch::stable::contiguous(torch::stable::to(weight, ScalarType::Float));
    const auto* weights = static_cast<const float*>(values.const_data_ptr());
    parallel_for(0, problem.codes(), 1, [&](int64_t begin, int64_t end) {
      for (int64_t code = begin; code < end; ++code) {
        fill_code(problem, weights, outputs, code);
      }
    });
  }

  // weights [outputs, channels, taps]
  void fill_code(const LabelProblem& problem, const float* weights, int64_t outputs, int64_t code) {
    const int64_t count = problem.windows.taps(), channels = problem.channels();
    const int64_t nobody = problem.num_labels;
    const int64_t label = code % (nobody + 1);
    const bool edge = code > nobody;
    const int64_t entries = problem.windows.entries(), width = problem.windows.kernel_width;
    float* row = taps.get() + code * entries * pitch;
    float* sums = windows.get() + code * pitch;
    std::fill_n(row, entries * pitch, 0.0f);
    std::copy_n(bias.get(), pitch, sums);
    for (int64_t k = 0; k < outputs; ++k) {
      const float* from = weights + k * channels * count;
      for (int64_t tap = 0; tap < count; ++tap) {
        const float of_label = label < nobody ? from[label * count + tap] : 0.0f;
        const float value = of_label + (edge ? from[nobody * count + tap] : 0.0f);
        row[tap * pitch + k] = value;
        row[(count + tap / width) * pitch + k] += value;
        sums[k] += value;
      }
    }
  }
};

template <typename T, typename Code>
struct Convolution {
  const LabelProblem& problem;
  const Tables& tables;
  const ChunkStatistics<T>& statistics;
  const T* addend;  // [images, pixels, channels], or none
  T* y;
  Act act;
  float slope;
  bool with_statistics;

  void run() const {
    const int64_t pixels = statistics.pixels(), channels = statistics.channels;
    for (int64_t image = 0; image < problem.images(); ++image) {
      const PaddedCells<Code> cells = problem.cells<Code>(image);
      const int64_t start = image * pixels * channels;
      const auto chunk_at = [&](int64_t first, int64_t count) {
        return chunk(cells, first, count, start + first * channels);
      };
      if (with_statistics) {
        statistics.image_statistics(image, chunk_at);
      } else {
        const int64_t size = statistics.chunk_pixels();
        parallel_for(0, ceil_div(pixels, size), 1, [&](int64_t begin, int64_t end) {
          for (int64_t first = begin * size; first < std::min(pixels, end * size); first += size) {
            chunk_at(first, std::min(size, pixels - first));
          }
        });
      }
    }
  }

  // Computes `count` pixels from `first` on, which go to y + offset, and says where they lie.
  const T* chunk(const PaddedCells<Code>& cells, int64_t first, int64_t count,
                 int64_t offset) const {
    const int64_t channels = statistics.channels;
    const bool in_place = std::is_same_v<T, float> && channels == tables.pitch;
    const Buffer buffer = in_place ? nullptr : uninitialised(count * tables.pitch);
    float* values = in_place ? reinterpret_cast<float*>(y + offset) : buffer.get();
    convolve(cells, first, first + count, values);
    if (channels < tables.pitch) {
      for (int64_t i = 1; i < count; ++i) {
        std::copy_n(values + i * tables.pitch, channels, values + i * channels);
      }
    }
    if (addend) add_tile(addend + offset, count * channels, values);
    if (act != Act::none) activate_tile(act, slope, count * channels, values);
    if (!in_place) write_tile(values, count * channels, y + offset);
    return y + offset;
  }

  // to [last - first, pitch]
  void convolve(const PaddedCells<Code>& cells, int64_t first, int64_t last, float* to) const {
    cells.for_each_run(
        first, last, problem.windows.columns, [&](int64_t begin, int64_t end, Code code) {
          float* at = to + (begin - first) * tables.pitch;
          if (code == kMixed<Code>) {
            gather(window_at(cells, problem.windows, begin, tables.pitch), tables.taps.get(),
                   tables.bias.get(), end - begin, at);
          } else {
            fill(tables.windows.get() + code * tables.pitch, tables.pitch, end - begin, at);
          }
        });
  }
};

void convolve(const LabelProblem& problem, const Tables& tables,
              const std::optional<Tensor>& addend, Act act, double slope, std::optional<double> eps,
              Tensor& y, Tensor& mean, Tensor& rstd) {
  with_type(y, [&]<typename T>() {
    const ChunkStatistics<T> statistics{{MemoryFormat::ChannelsLast, y},
                                        static_cast<float*>(mean.mutable_data_ptr()),
                                        static_cast<float*>(rstd.mutable_data_ptr()),
                                        eps.value_or(0.0)};
    problem.with_code([&]<typename Code>() {
      Convolution<T, Code>{problem,
                           tables,
                           statistics,
                           addend ? static_cast<const T*>(addend->const_data_ptr()) : nullptr,
                           static_cast<T*>(y.mutable_data_ptr()),
                           act,
                           static_cast<float>(slope),
                           eps.has_value()}
          .run();
    });
  });
}

std::tuple<Tensor, Tensor, Tensor> label_conv2d_cpu(
    const Tensor& labels, const std::optional<Tensor>& edges, const Tensor& weight,
    const std::optional<Tensor>& bias, const std::optional<Tensor>& addend, int64_t num_labels,
    int64_t level, int64_t stride, std::string padding, int64_t pad, bool dead_bias,
    std::string act, double slope, std::optional<double> eps) {
  STD_TORCH_CHECK(weight.dim() == 4, "label_conv2d: weight must be [K, channels, kh, kw]");
  const LabelProblem problem(labels, edges, num_labels, weight.size(2), weight.size(3), level,
                             stride, padding, pad);
  STD_TORCH_CHECK(weight.size(0) > 0 && weight.size(1) == problem.channels(),
                  "label_conv2d: weight must have the channels of labels and edges");
  const int64_t n = problem.images(), k = weight.size(0);
  const int64_t height = problem.windows.rows, width = problem.windows.columns;
  Tensor y = torch::stable::empty({n, k, height, width}, weight.scalar_type(), std::nullopt,
                                  std::nullopt, std::nullopt, MemoryFormat::ChannelsLast);
  advise_huge_pages(y.mutable_data_ptr(), y.numel() * y.element_size());
  const auto statistic = [&] {
    return eps ? torch::stable::empty({n, k}, ScalarType::Float)
               : torch::stable::empty({0}, ScalarType::Float);
  };
  Tensor mean = statistic(), rstd = statistic();
  if (n == 0) return {y, mean, rstd};
  std::optional<Tensor> add;
  if (addend) {
    check_alike(*addend, y, 0, "addend");
    add = torch::stable::contiguous(*addend, MemoryFormat::ChannelsLast);
  }
  const Tables tables(problem, weight, dead_bias ? std::nullopt : bias);
  convolve(problem, tables, add, act_of(act), slope, eps, y, mean, rstd);
  return {y, mean, rstd};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pix2pixhd_fast, CPU, m) {
  m.impl("label_conv2d", TORCH_BOX(&label_conv2d_cpu));
}
