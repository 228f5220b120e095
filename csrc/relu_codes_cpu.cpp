#include <torch/csrc/stable/library.h>

#include <cmath>
#include <optional>
#include <tuple>
#include <vector>

#include "relu_codes.h"
#include "tiles.h"

namespace {

// As in ops/relu_codes.py; here the first number takes all.
constexpr int64_t kSumPrograms = 1024;

// y = relu(x + bias), where codes: 1 where a gradient passes; y may be x.
PIX2PIXHD_FAST_SIMD
void relu_tile(const float* x, int64_t count, int64_t lanes, const float* bias, float* y,
               uint8_t* codes) {
  for_each_value(count, lanes, [=](int64_t i, int64_t lane) __attribute__((always_inline)) {
    const float z = x[i] + bias[lane];
    codes[i] = !(z <= 0.0f);
    y[i] = relu(z);
  });
}

// x = relu(x + bias), y = relu(y + bias); their codes.
PIX2PIXHD_FAST_SIMD
void l1_tile(float* x, float* y, int64_t count, int64_t lanes, const float* bias, uint8_t* codes) {
  for_each_value(count, lanes, [=](int64_t i, int64_t lane) __attribute__((always_inline)) {
    const float z = x[i] + bias[lane];
    const float a = relu(z), b = relu(y[i] + bias[lane]);
    const int sign = 2 + (a > b) - (a < b);
    codes[i] = static_cast<uint8_t>(z <= 0.0f ? 0 : sign);
    x[i] = a;
    y[i] = b;
  });
}

// sums [lanes] += |x - y|
PIX2PIXHD_FAST_SIMD
void add_distances(const float* x, const float* y, int64_t count, int64_t lanes, float* sums) {
  for_each_value(count, lanes, [=](int64_t i, int64_t lane) __attribute__((always_inline)) {
    sums[lane] += std::fabs(x[i] - y[i]);
  });
}

// g where a code is set, otherwise 0.
PIX2PIXHD_FAST_SIMD
void mask_tile(float* g, int64_t count, const uint8_t* codes) {
  for (int64_t i = 0; i < count; ++i) g[i] = codes[i] != 0 ? g[i] : 0.0f;
}

PIX2PIXHD_FAST_SIMD
void l1_backward_tile(float* g, int64_t count, const uint8_t* codes, float scale, bool add) {
  for (int64_t i = 0; i < count; ++i) {
    const float own = static_cast<float>(codes[i] - 2) * scale + (add ? g[i] : 0.0f);
    g[i] = codes[i] != 0 ? own : 0.0f;
  }
}

Tensor relu_bits_cpu(Tensor x, const Tensor& bias, int64_t coded) {
  check_bias(bias, x);
  STD_TORCH_CHECK(0 <= coded && coded <= x.size(0), "relu codes: coded does not match x");
  const Pixels pixels(x);
  const int64_t coded_values = coded * x.size(1) * x.size(2) * x.size(3);
  Tensor result = new_codes(coded_values, 1);
  if (x.numel() == 0) return result;
  const Buffer shift = pixels.repeated(bias);
  with_type(x, [&]<typename T>() {
    T* all = static_cast<T*>(x.mutable_data_ptr());
    uint8_t* bits = bytes_of(result);
    pixels.for_each_tile(1, [&](int64_t, int64_t first, int64_t n, float* buffer, uint8_t* codes) {
      float* floats = tile_to_change(all + first, n, buffer);
      relu_tile(floats, n, pixels.lanes, shift.get(), floats, codes);
      store_tile(floats, n, all + first);
      if (first < coded_values) {
        pack<1>(codes, std::min(n, coded_values - first), bits + code_bytes(first, 1));
      }
    });
  });
  return result;
}

void relu_bits_backward_cpu(Tensor g, const Tensor& bits) {
  check_codes(bits, g, 1);
  if (g.numel() == 0) return;
  with_type(g, [&]<typename T>() {
    T* all = static_cast<T*>(g.mutable_data_ptr());
    const Pixels pixels(g);
    pixels.for_each_tile(1, [&](int64_t, int64_t first, int64_t n, float* buffer, uint8_t* codes) {
      unpack(bytes_of(bits) + code_bytes(first, 1), n, 1, codes);
      float* floats = tile_to_change(all + first, n, buffer);
      mask_tile(floats, n, codes);
      store_tile(floats, n, all + first);
    });
  });
}

template <typename T>
struct ReluL1 {
  Pixels pixels;
  T *x, *y;
  const float* bias;
  bool write_x, write_y;
  uint8_t* codes;  // or nullptr

  // The sums of the chunks.
  std::vector<double> run() const {
    std::vector<double> sums(pixels.chunks());
    pixels.for_each_tile(
        2 + ceil_div(pixels.lanes, pixels.tile),
        [&](int64_t chunk, int64_t first, int64_t n, float* buffer, uint8_t* found) {
          float* a = copy_tile(x + first, n, buffer);
          float* b = copy_tile(y + first, n, buffer + pixels.tile);
          float* lanes = buffer + 2 * pixels.tile;
          std::fill_n(lanes, pixels.lanes, 0.0f);
          l1_tile(a, b, n, pixels.lanes, bias, found);
          add_distances(a, b, n, pixels.lanes, lanes);
          for (int64_t i = 0; i < pixels.lanes; ++i) sums[chunk] += lanes[i];
          if (write_x) write_tile(a, n, x + first);
          if (write_y) write_tile(b, n, y + first);
          if (codes) pack<2>(found, n, codes + code_bytes(first, 2));
        });
    return sums;
  }
};

std::tuple<Tensor, Tensor> relu_l1_cpu(Tensor x, Tensor y, const Tensor& bias,
                                       const std::optional<Tensor>& given, double weight,
                                       bool write_x, bool write_y, bool keep) {
  check_bias(bias, x);
  check_alike(y, x, 0, "y");
  check_picture(y, "y");
  Tensor sums = torch::stable::empty({kSumPrograms}, ScalarType::Float);
  auto* numbers = static_cast<float*>(sums.mutable_data_ptr());
  if (given) {
    STD_TORCH_CHECK(given->numel() == kSumPrograms && given->is_contiguous() &&
                        given->scalar_type() == ScalarType::Float,
                    "relu codes: sums must be ", kSumPrograms, " float32");
    std::copy_n(static_cast<const float*>(given->const_data_ptr()), kSumPrograms, numbers);
  } else {
    std::fill_n(numbers, kSumPrograms, 0.0f);
  }
  const Pixels pixels(x);
  Tensor result = new_codes(keep ? x.numel() : 0, 2);
  if (x.numel() == 0) return {sums, result};
  const Buffer shift = pixels.repeated(bias);
  with_type(x, [&]<typename T>() {
    const ReluL1<T> pass{pixels,
                         static_cast<T*>(x.mutable_data_ptr()),
                         static_cast<T*>(y.mutable_data_ptr()),
                         shift.get(),
                         write_x,
                         write_y,
                         keep ? bytes_of(result) : nullptr};
    double total = 0.0;
    for (const double sum : pass.run()) total += sum;
    numbers[0] += static_cast<float>(weight * total);
  });
  return {sums, result};
}

void relu_l1_backward_cpu(Tensor g, const Tensor& codes, const Tensor& dloss, double weight,
                          bool add) {
  check_codes(codes, g, 2);
  STD_TORCH_CHECK(dloss.numel() == 1, "relu codes: dloss must be one number");
  if (g.numel() == 0) return;
  const Tensor number = torch::stable::to(dloss, ScalarType::Float);
  const float scale =
      *static_cast<const float*>(number.const_data_ptr()) * static_cast<float>(weight);
  with_type(g, [&]<typename T>() {
    T* all = static_cast<T*>(g.mutable_data_ptr());
    const Pixels pixels(g);
    pixels.for_each_tile(1, [&](int64_t, int64_t first, int64_t n, float* buffer, uint8_t* found) {
      unpack(bytes_of(codes) + code_bytes(first, 2), n, 2, found);
      float* floats =
          add ? tile_to_change(all + first, n, buffer) : tile_target(all + first, buffer);
      l1_backward_tile(floats, n, found, scale, add);
      store_tile(floats, n, all + first);
    });
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pix2pixhd_fast, CPU, m) {
  m.impl("relu_bits_", TORCH_BOX(&relu_bits_cpu));
  m.impl("relu_bits_backward_", TORCH_BOX(&relu_bits_backward_cpu));
  m.impl("relu_l1_", TORCH_BOX(&relu_l1_cpu));
  m.impl("relu_l1_backward_", TORCH_BOX(&relu_l1_backward_cpu));
}
