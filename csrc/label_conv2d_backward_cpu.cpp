#include <torch/csrc/stable/library.h>

#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "label_cells.h"
#include "label_problem.h"
#include "pictures.h"
#include "tiles.h"

namespace {

// So many sums are taken side by side at most, whatever the number of threads, and added in order;
// so many pixels each should have, and so many bytes all may take.
constexpr int64_t kPartitions = 16;
constexpr int64_t kPartitionPixels = 16384;
constexpr int64_t kPartitionBytes = int64_t{64} << 20;
// The pixels of a run that are summed in float32; sums of runs are double.
constexpr int64_t kRun = 256;

// table += dy [count, step] at everything that the windows see.
template <int kCount, typename Code>
[[gnu::always_inline]] inline void scatter_lanes(const Window<Code>& window, const float* dy,
                                                 int64_t count, int64_t step, float* table) {
  const auto same = [=](int64_t row, int64_t begin, int64_t end) __attribute__((always_inline)) {
    Lanes sums[kCount] = {};
    for (int64_t i = begin; i < end; ++i) {
      for (int n = 0; n < kCount; ++n) sums[n] += lanes_at(dy + i * step + n * kLane);
    }
    for (int n = 0; n < kCount; ++n) lanes_at(table + row + n * kLane) += sums[n];
  };
  const auto mixture = [=, &window](const Part* part, int64_t tap, int64_t i)
                           __attribute__((always_inline)) {
                             Lanes values[kCount];
                             for (int n = 0; n < kCount; ++n)
                               values[n] = lanes_at(dy + i * step + n * kLane);
                             for (; part->code >= 0; ++part) {
                               float* to = table + window.row_of(part->code, tap);
                               for (int n = 0; n < kCount; ++n)
                                 lanes_at(to + n * kLane) += part->share * values[n];
                             }
                           };
  window.for_each_place(count, same, mixture);
}

template <typename Code>
[[gnu::always_inline]] inline void scatter_windows(Window<Code> window, const float* dy,
                                                   int64_t count, float* table) {
  const int64_t pitch = window.pitch;
  for (int64_t first = 0; first < count; first += kSideBySide, dy += kSideBySide * pitch) {
    const int64_t some = std::min(kSideBySide, count - first);
    int64_t at = 0;
    for (; at + 8 * kLane <= pitch; at += 8 * kLane) {
      scatter_lanes<8>(window, dy + at, some, pitch, table + at);
    }
    for (; at + 4 * kLane <= pitch; at += 4 * kLane) {
      scatter_lanes<4>(window, dy + at, some, pitch, table + at);
    }
    for (; at < pitch; at += kLane) {
      scatter_lanes<1>(window, dy + at, some, pitch, table + at);
    }
    window.advance(some);
  }
}

PIX2PIXHD_FAST_SIMD
void scatter(const Window<uint8_t>& window, const float* dy, int64_t count, float* table) {
  scatter_windows(window, dy, count, table);
}

PIX2PIXHD_FAST_SIMD
void scatter(const Window<int32_t>& window, const float* dy, int64_t count, float* table) {
  scatter_windows(window, dy, count, table);
}

// sums [pitch] += each of the `count` pixels dy [count, pitch]
PIX2PIXHD_FAST_SIMD
void add_run(const float* dy, int64_t count, int64_t pitch, double* sums) {
  for (int64_t at = 0; at < pitch; at += kLane) {
    Lanes sum = {};
    for (int64_t i = 0; i < count; ++i) sum += lanes_at(dy + i * pitch + at);
    for (int64_t lane = 0; lane < kLane; ++lane) sums[at + lane] += sum[lane];
  }
}

// The sums of a part of the pixels.
struct Sums {
  std::vector<float> taps;      // [codes, entries, pitch]: windows of several codes
  std::vector<double> windows;  // [codes, pitch]: windows of one code
  std::vector<double> mixed;    // [pitch]: the pixels with windows of several
};

template <typename T, typename Code>
struct Backward {
  const LabelProblem& problem;
  const T* dy;  // [images, pixels, outputs]
  int64_t outputs;
  int64_t pitch = ceil_div(outputs, kLane) * kLane;
  std::vector<Sums> partitions = {};

  void run() {
    const int64_t pixels = problem.windows.rows * problem.windows.columns;
    const int64_t size = problem.codes() * problem.windows.entries() * pitch;
    const int64_t affordable = kPartitionBytes / (size * static_cast<int64_t>(sizeof(float)));
    const int64_t most = std::clamp<int64_t>(affordable, 1, kPartitions);
    const int64_t count = std::clamp<int64_t>(pixels / kPartitionPixels, 1, most);
    const int64_t share = ceil_div(pixels, count);
    partitions.resize(count);
    parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
      for (int64_t p = begin; p < end; ++p) {
        partitions[p] = {std::vector<float>(size), std::vector<double>(problem.codes() * pitch),
                         std::vector<double>(pitch)};
      }
    });
    for (int64_t image = 0; image < problem.images(); ++image) {
      const PaddedCells<Code> cells = problem.cells<Code>(image);
      parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
        for (int64_t p = begin; p < end; ++p) {
          add_pixels(cells, dy + image * pixels * outputs, p * share,
                     std::min(pixels, (p + 1) * share), partitions[p]);
        }
      });
    }
  }

  void add_pixels(const PaddedCells<Code>& cells, const T* image, int64_t first, int64_t last,
                  Sums& sums) const {
    const Buffer buffer = uninitialised(kRun * pitch);
    cells.for_each_run(first, last, problem.windows.columns,
                       [&](int64_t begin, int64_t end, Code code) {
                         for (int64_t at = begin; at < end; at += kRun) {
                           const int64_t count = std::min(kRun, end - at);
                           const float* values = load(image + at * outputs, count, buffer.get());
                           if (code == kMixed<Code>) {
                             scatter(window_at(cells, problem.windows, at, pitch), values, count,
                                     sums.taps.data());
                             add_run(values, count, pitch, sums.mixed.data());
                           } else {
                             add_run(values, count, pitch, sums.windows.data() + code * pitch);
                           }
                         }
                       });
  }

  // [count, outputs] -> float [count, pitch], zeros behind the outputs
  const float* load(const T* from, int64_t count, float* buffer) const {
    if (outputs == pitch) return load_tile(from, count * outputs, buffer);
    copy_tile(from, count * outputs, buffer);
    for (int64_t i = count - 1; i >= 0; --i) {
      std::copy_backward(buffer + i * outputs, buffer + (i + 1) * outputs,
                         buffer + i * pitch + outputs);
      std::fill(buffer + i * pitch + outputs, buffer + (i + 1) * pitch, 0.0f);
    }
    return buffer;
  }

  // The sum of all partitions for a code, [taps, pitch], added to `to`.
  void add_code(int64_t code, double* to) const {
    const int64_t taps = problem.windows.taps(), entries = problem.windows.entries();
    for (const Sums& sums : partitions) {
      const float* mixed = sums.taps.data() + code * entries * pitch;
      const double* windows = sums.windows.data() + code * pitch;
      for (int64_t tap = 0; tap < taps; ++tap) {
        const float* of_tap = mixed + tap * pitch;
        const float* of_row = mixed + (taps + tap / problem.windows.kernel_width) * pitch;
        for (int64_t k = 0; k < pitch; ++k) {
          to[tap * pitch + k] += windows[k] + of_row[k] + of_tap[k];
        }
      }
    }
  }

  // dweight [outputs, channels, taps]
  void write_weight(float* dweight) const {
    const int64_t taps = problem.windows.taps(), nobody = problem.num_labels;
    parallel_for(0, problem.channels(), 1, [&](int64_t begin, int64_t end) {
      std::vector<double> total(taps * pitch);
      for (int64_t channel = begin; channel < end; ++channel) {
        std::fill(total.begin(), total.end(), 0.0);
        if (channel == nobody) {
          for (int64_t code = nobody + 1; code < problem.codes(); ++code) {
            add_code(code, total.data());
          }
        } else {
          add_code(channel, total.data());
          if (problem.edges) add_code(nobody + 1 + channel, total.data());
        }
        for (int64_t k = 0; k < outputs; ++k) {
          float* to = dweight + (k * problem.channels() + channel) * taps;
          for (int64_t tap = 0; tap < taps; ++tap) {
            to[tap] = static_cast<float>(total[tap * pitch + k]);
          }
        }
      }
    });
  }

  void write_bias(float* dbias) const {
    std::vector<double> total(pitch);
    for (const Sums& sums : partitions) {
      for (int64_t k = 0; k < pitch; ++k) total[k] += sums.mixed[k];
      for (size_t i = 0; i < sums.windows.size(); ++i) total[i % pitch] += sums.windows[i];
    }
    for (int64_t k = 0; k < outputs; ++k) dbias[k] = static_cast<float>(total[k]);
  }
};

std::tuple<Tensor, Tensor> label_conv2d_backward_cpu(const Tensor& given, const Tensor& labels,
                                                     const std::optional<Tensor>& edges,
                                                     int64_t num_labels, int64_t kernel_height,
                                                     int64_t kernel_width, int64_t level,
                                                     int64_t stride, std::string padding,
                                                     int64_t pad) {
  const LabelProblem problem(labels, edges, num_labels, kernel_height, kernel_width, level, stride,
                             padding, pad);
  STD_TORCH_CHECK(given.dim() == 4 && given.size(0) == problem.images() && given.size(1) > 0 &&
                      given.size(2) == problem.windows.rows &&
                      given.size(3) == problem.windows.columns,
                  "label_conv2d_backward: dy does not match labels");
  const int64_t outputs = given.size(1);
  const Tensor dy = torch::stable::contiguous(given, MemoryFormat::ChannelsLast);
  Tensor dweight = torch::stable::empty({outputs, problem.channels(), kernel_height, kernel_width},
                                        ScalarType::Float);
  Tensor dbias = torch::stable::empty({outputs}, ScalarType::Float);
  with_type(dy, [&]<typename T>() {
    problem.with_code([&]<typename Code>() {
      Backward<T, Code> backward{problem, static_cast<const T*>(dy.const_data_ptr()), outputs};
      backward.run();
      backward.write_weight(static_cast<float*>(dweight.mutable_data_ptr()));
      backward.write_bias(static_cast<float*>(dbias.mutable_data_ptr()));
    });
  });
  return {torch::stable::to(dweight, dy.scalar_type()), torch::stable::to(dbias, dy.scalar_type())};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pix2pixhd_fast, CPU, m) {
  m.impl("label_conv2d_backward", TORCH_BOX(&label_conv2d_backward_cpu));
}
