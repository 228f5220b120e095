#include <torch/csrc/stable/library.h>

#include <tuple>

#include "relu_codes.h"
#include "tiles.h"

namespace {

// Pixels of a row of the pooled picture that lie next to each other, of [channels] values.
struct Run {
  int64_t count, channels;
};

// The maxima of 2x2 values of two rows, the rectified sum with the bias, and one bit of four for
// the value that is the maximum; 0 where that is not positive.
PIX2PIXHD_FAST_SIMD
void pool_run(const float* top, const float* bottom, Run run, const float* bias, float* y,
              uint8_t* codes) {
  const int64_t channels = run.channels;
  for (int64_t i = 0; i < run.count; ++i) {
    const float* a = top + 2 * i * channels;
    const float* b = bottom + 2 * i * channels;
#pragma GCC ivdep
    for (int64_t c = 0; c < channels; ++c) {
      float largest = a[c] + bias[c];
      int code = 1;
      const auto next = [&](float value, int bit) __attribute__((always_inline)) {
        const bool larger = value > largest || value != value;
        largest = larger ? value : largest;
        code = larger ? bit : code;
      };
      next(a[channels + c] + bias[c], 2);
      next(b[c] + bias[c], 4);
      next(b[channels + c] + bias[c], 8);
      codes[i * channels + c] = static_cast<uint8_t>(largest <= 0.0f ? 0 : code);
      y[i * channels + c] = relu(largest);
    }
  }
}

PIX2PIXHD_FAST_SIMD
void unpool_run(const float* g, const uint8_t* codes, Run run, float* top, float* bottom) {
  const int64_t channels = run.channels;
  for (int64_t i = 0; i < run.count; ++i) {
    float* a = top + 2 * i * channels;
    float* b = bottom + 2 * i * channels;
#pragma GCC ivdep
    for (int64_t c = 0; c < channels; ++c) {
      const float value = g[i * channels + c];
      const int code = codes[i * channels + c];
      a[c] = code & 1 ? value : 0.0f;
      a[channels + c] = code & 2 ? value : 0.0f;
      b[c] = code & 4 ? value : 0.0f;
      b[channels + c] = code & 8 ? value : 0.0f;
    }
  }
}

// Where the windows of a pooled picture lie in the whole one.
struct Windows {
  int64_t channels, height, width;

  int64_t row_size() const { return width / 2 * channels; }
  int64_t whole_row() const { return width * channels; }

  // Calls body(first value, place of its window in the whole picture, run) for the rows' parts of
  // the pooled values from `first` on.
  template <typename Body>
  void for_each_run(int64_t first, int64_t count, Body body) const {
    const int64_t rows = height / 2;
    for (int64_t i = first; i < first + count;) {
      const int64_t row = i / row_size(), offset = i % row_size();
      const int64_t n = std::min(first + count - i, row_size() - offset);
      const int64_t whole = (row / rows * height + row % rows * 2) * whole_row() + 2 * offset;
      body(i, whole, Run{n / channels, channels});
      i += n;
    }
  }
};

// The maxima of all windows of x into y, and the codes of the first `coded` values of y.
void pool_pictures(const Tensor& x, const Tensor& bias, Tensor& y, Tensor& result, int64_t coded) {
  const Windows windows{x.size(1), x.size(2), x.size(3)};
  const int64_t values = x.size(0) * (x.size(2) / 2) * windows.row_size();
  if (values == 0) return;
  const Pixels pixels(x.size(1), values);
  const Buffer shift = pixels.repeated(bias);
  with_type(x, [&]<typename T>() {
    const T* all = static_cast<const T*>(x.const_data_ptr());
    T* to = static_cast<T*>(y.mutable_data_ptr());
    uint8_t* words = bytes_of(result);
    pixels.for_each_tile(5, [&](int64_t, int64_t first, int64_t n, float* buffer, uint8_t* codes) {
      float* pooled = tile_target(to + first, buffer + 4 * pixels.tile);
      windows.for_each_run(first, n, [&](int64_t i, int64_t whole, Run run) {
        const int64_t size = 2 * run.count * run.channels;
        const float* top = load_tile(all + whole, size, buffer);
        const float* bottom =
            load_tile(all + whole + windows.whole_row(), size, buffer + 2 * pixels.tile);
        pool_run(top, bottom, run, shift.get(), pooled + i - first, codes + i - first);
      });
      store_tile(pooled, n, to + first);
      if (first < coded) pack<4>(codes, std::min(n, coded - first), words + code_bytes(first, 4));
    });
  });
}

std::tuple<Tensor, Tensor> relu_pool_cpu(const Tensor& x, const Tensor& bias, int64_t coded,
                                         int64_t room) {
  check_bias(bias, x);
  STD_TORCH_CHECK(0 <= coded && coded <= x.size(0) && x.size(0) <= room,
                  "relu codes: coded and room do not match x");
  Tensor y = new_tensor(MemoryFormat::ChannelsLast, x, room, x.size(2) / 2, x.size(3) / 2);
  const int64_t coded_values = coded * y.size(1) * y.size(2) * y.size(3);
  Tensor result = new_codes(coded_values, 4);
  pool_pictures(x, bias, y, result, coded_values);
  return {y, result};
}

void relu_pool_into_cpu(const Tensor& x, const Tensor& bias, Tensor y) {
  check_bias(bias, x);
  check_picture(y, "y");
  STD_TORCH_CHECK(y.size(0) == x.size(0) && y.size(1) == x.size(1) && y.size(2) == x.size(2) / 2 &&
                      y.size(3) == x.size(3) / 2 && y.scalar_type() == x.scalar_type(),
                  "relu codes: y does not match x");
  Tensor none = new_codes(0, 4);
  pool_pictures(x, bias, y, none, 0);
}

// Zeros where no window is: the last column of odd widths, the last row of odd heights.
template <typename T>
void clear_rest(T* dx, const Windows& windows, int64_t images) {
  const int64_t row = windows.whole_row();
  for (int64_t i = 0; i < images * windows.height; ++i) {
    T* values = dx + i * row;
    if (i % windows.height == windows.height / 2 * 2) {
      std::fill_n(values, row, T{});
    } else {
      std::fill(values + 2 * windows.row_size(), values + row, T{});
    }
  }
}

Tensor relu_pool_backward_cpu(const Tensor& g, const Tensor& given, int64_t height, int64_t width) {
  check_codes(given, g, 4);
  STD_TORCH_CHECK(height / 2 == g.size(2) && width / 2 == g.size(3),
                  "relu codes: height and width do not match g");
  Tensor dx = new_tensor(MemoryFormat::ChannelsLast, g, height, width);
  const Windows windows{g.size(1), height, width};
  if (dx.numel() == 0) return dx;
  with_type(g, [&]<typename T>() {
    const T* all = static_cast<const T*>(g.const_data_ptr());
    T* to = static_cast<T*>(dx.mutable_data_ptr());
    if (height % 2 != 0 || width % 2 != 0) clear_rest(to, windows, g.size(0));
    const Pixels pixels(g);
    pixels.for_each_tile(5, [&](int64_t, int64_t first, int64_t n, float* buffer, uint8_t* codes) {
      unpack(bytes_of(given) + code_bytes(first, 4), n, 4, codes);
      const float* values = load_tile(all + first, n, buffer + 4 * pixels.tile);
      windows.for_each_run(first, n, [&](int64_t i, int64_t whole, Run run) {
        const int64_t size = 2 * run.count * run.channels;
        T *upper = to + whole, *lower = upper + windows.whole_row();
        float* top = tile_target(upper, buffer);
        float* bottom = tile_target(lower, buffer + 2 * pixels.tile);
        unpool_run(values + i - first, codes + i - first, run, top, bottom);
        store_tile(top, size, upper);
        store_tile(bottom, size, lower);
      });
    });
  });
  return dx;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pix2pixhd_fast, CPU, m) {
  m.impl("relu_pool", TORCH_BOX(&relu_pool_cpu));
  m.impl("relu_pool_into_", TORCH_BOX(&relu_pool_into_cpu));
  m.impl("relu_pool_backward", TORCH_BOX(&relu_pool_backward_cpu));
}
