#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <optional>

#include "pictures.h"
#include "simd.h"

// Winograd's convolution with the points 0, 5/8, -5/8, 3/2, -3/2 and infinity. Tiles of n x n
// pixels become 6 x 6 values, and back. The arithmetic is written for one line of a tile; a tile
// takes its columns, then its rows, in all channels at once.
namespace {

constexpr int64_t kPoints = 6;
// The channels that go through a tile together: what lies between columns and rows is 9 KiB.
constexpr int64_t kLane = 64;

// The squares of the points, all exact in float32.
constexpr float kNear = 0.625f, kFar = 1.5f;
constexpr float kNear2 = kNear * kNear, kFar2 = kFar * kFar;

// The values of a polynomial with n coefficients at the points, each divided by the product of the
// distances of its point from the others.
template <int64_t n>
struct Evaluate {
  static constexpr int64_t kIn = n, kOut = kPoints;

  [[gnu::always_inline]] static void line(const float* x, float* y) {
    constexpr float kZeroScale = 1.0f / (kNear2 * kFar2);
    constexpr float kNearScale = 0.5f / (kNear2 * (kNear2 - kFar2));
    constexpr float kFarScale = 0.5f / (kFar2 * (kFar2 - kNear2));
    const auto at = [&](float point, float square, float scale, float& plus, float& minus)
                        __attribute__((always_inline)) {
                          float even = x[0], odd = x[1];
                          if constexpr (n > 4) even += square * (x[2] + square * x[4]);
                          if constexpr (n == 3 || n == 4) even += square * x[2];
                          if constexpr (n > 3) odd += square * x[3];
                          even *= scale;
                          odd *= scale * point;
                          plus = even + odd;
                          minus = even - odd;
                        };
    y[0] = kZeroScale * x[0];
    at(kNear, kNear2, kNearScale, y[1], y[2]);
    at(kFar, kFar2, kFarScale, y[3], y[4]);
    y[5] = x[n - 1];
  }
};

// The transpose of the interpolation through the points, without the divisions of `Evaluate`.
struct Interpolate {
  static constexpr int64_t kIn = kPoints, kOut = kPoints;

  [[gnu::always_inline]] static void line(const float* x, float* y) {
    const auto at = [&](float point, float others, float& plus, float& minus)
                        __attribute__((always_inline)) {
                          const float even = x[4] - others * x[2];
                          const float odd = point * (x[3] - others * x[1]);
                          plus = even + odd;
                          minus = even - odd;
                        };
    y[0] = x[4] - (kNear2 + kFar2) * x[2] + kNear2 * kFar2 * x[0];
    at(kNear, kFar2, y[1], y[2]);
    at(kFar, kNear2, y[3], y[4]);
    y[5] = x[5] - (kNear2 + kFar2) * x[3] + kNear2 * kFar2 * x[1];
  }
};

// The transpose of the evaluation, without its divisions: points -> n pixels.
template <int64_t n>
struct Collect {
  static constexpr int64_t kIn = kPoints, kOut = n;

  [[gnu::always_inline]] static void line(const float* x, float* y) {
    const float near = x[1] + x[2], far = x[3] + x[4];
    const float near_odd = kNear * (x[1] - x[2]), far_odd = kFar * (x[3] - x[4]);
    y[0] = x[0] + near + far;
    y[1] = near_odd + far_odd;
    if constexpr (n > 2) y[2] = kNear2 * near + kFar2 * far;
    if constexpr (n > 3) y[3] = kNear2 * near_odd + kFar2 * far_odd;
    if constexpr (n > 4) y[4] = kNear2 * kNear2 * near + kFar2 * kFar2 * far;
    y[n - 1] += x[5];
  }
};

// Pointers to the channels of the values of a tile, row by row.
template <typename T>
using Tile = T * [kPoints * kPoints];

template <typename Side>
[[gnu::always_inline]] inline void transform_lines(const float* const (&from)[Side::kIn],
                                                   float* const (&to)[Side::kOut],
                                                   int64_t channels) {
#pragma GCC ivdep
  for (int64_t c = 0; c < channels; ++c) {
    float x[Side::kIn], y[Side::kOut];
    for (int64_t i = 0; i < Side::kIn; ++i) x[i] = from[i][c];
    Side::line(x, y);
    for (int64_t i = 0; i < Side::kOut; ++i) to[i][c] = y[i];
  }
}

template <typename Side>
[[gnu::always_inline]] inline void transform_tile(const Tile<const float>& from,
                                                  const Tile<float>& to, int64_t channels) {
  constexpr int64_t in = Side::kIn, out = Side::kOut;
  float between[out][in][kLane];
  for (int64_t column = 0; column < in; ++column) {
    const float* read[in];
    float* written[out];
    for (int64_t i = 0; i < in; ++i) read[i] = from[i * in + column];
    for (int64_t i = 0; i < out; ++i) written[i] = between[i][column];
    transform_lines<Side>(read, written, channels);
  }
  for (int64_t row = 0; row < out; ++row) {
    const float* read[in];
    float* written[out];
    for (int64_t i = 0; i < in; ++i) read[i] = between[row][i];
    for (int64_t i = 0; i < out; ++i) written[i] = to[row * out + i];
    transform_lines<Side>(read, written, channels);
  }
}

PIX2PIXHD_FAST_SIMD
void to_points(int64_t side, const Tile<const float>& from, const Tile<float>& to,
               int64_t channels) {
  if (side == 2) return transform_tile<Evaluate<2>>(from, to, channels);
  if (side == 3) return transform_tile<Evaluate<3>>(from, to, channels);
  if (side == 4) return transform_tile<Evaluate<4>>(from, to, channels);
  if (side == 5) return transform_tile<Evaluate<5>>(from, to, channels);
  transform_tile<Interpolate>(from, to, channels);
}

PIX2PIXHD_FAST_SIMD
void to_pixels(int64_t side, const Tile<const float>& from, const Tile<float>& to,
               int64_t channels) {
  if (side == 2) return transform_tile<Collect<2>>(from, to, channels);
  if (side == 3) return transform_tile<Collect<3>>(from, to, channels);
  if (side == 4) return transform_tile<Collect<4>>(from, to, channels);
  transform_tile<Collect<5>>(from, to, channels);
}

PIX2PIXHD_FAST_SIMD
void add_bias(const float* bias, int64_t channels, float* y) {
  for (int64_t c = 0; c < channels; ++c) y[c] += bias[c];
}

// Tiles of side x side pixels, `step` apart, in a grid [down, across] over each picture, whose
// first begins `pad` pixels outside; the rows of the grids of all pictures are counted through.
struct Grid {
  int64_t side, step, pad, down, across, first_row, tiles;

  // Calls body(tile, its picture, its first row and column) for all tiles, in parallel.
  template <typename Body>
  void for_each(int64_t channels, Body body) const {
    const int64_t grain = ceil_div(kChunk, kPoints * kPoints * channels);
    parallel_for(0, tiles, grain, [&](int64_t begin, int64_t end) {
      for (int64_t tile = begin; tile < end; ++tile) {
        const int64_t row = first_row + tile / across;
        body(tile, row / down, row % down * step - pad, tile % across * step - pad);
      }
    });
  }
};

// Pictures with any strides.
template <typename T>
struct Strided {
  T* data;
  int64_t images, channels, height, width;
  int64_t image_stride, channel_stride, row_stride, column_stride;

  // Channels that do not lie next to each other must be copied.
  bool apart() const { return channel_stride != 1; }

  bool empty() const { return images * channels * height * width == 0; }

  // From the first value to the last one.
  int64_t span() const {
    if (empty()) return 0;
    return 1 + (images - 1) * image_stride + (channels - 1) * channel_stride +
           (height - 1) * row_stride + (width - 1) * column_stride;
  }

  void load(const T* values, int64_t count, float* to) const {
    for (int64_t c = 0; c < count; ++c) to[c] = values[c * channel_stride];
  }

  void store(const float* from, int64_t count, T* values) const {
    for (int64_t c = 0; c < count; ++c) values[c * channel_stride] = from[c];
  }

  // nullptr outside
  T* at(int64_t image, int64_t channel, int64_t row, int64_t column) const {
    if (row < 0 || row >= height || column < 0 || column >= width) return nullptr;
    return data + image * image_stride + channel * channel_stride + row * row_stride +
           column * column_stride;
  }
};

template <typename T>
Strided<T> strided(const Tensor& x, T* data) {
  const int64_t channel_stride = x.size(1) == 1 ? 1 : x.stride(1);
  return {data,        x.size(0),      x.size(1),   x.size(2),  x.size(3),
          x.stride(0), channel_stride, x.stride(2), x.stride(3)};
}

void check(const Tensor& x, const Tensor& points, const Grid& grid, int64_t least, int64_t most) {
  STD_TORCH_CHECK(x.dim() == 4 && points.dim() == 3 && x.scalar_type() == ScalarType::Float &&
                      points.scalar_type() == ScalarType::Float,
                  "winograd: pictures must be [N, C, H, W], points [36, T, C], both float32");
  STD_TORCH_CHECK(points.size(0) == kPoints * kPoints && points.size(2) == x.size(1) &&
                      (points.size(2) == 1 || points.stride(2) == 1),
                  "winograd: points must be [36, T, C], channels next to each other");
  STD_TORCH_CHECK(grid.side >= least && grid.side <= most && grid.step >= 1 && grid.pad >= 0 &&
                      grid.down >= 1 && grid.across >= 1 && grid.first_row >= 0 &&
                      grid.tiles % grid.across == 0 &&
                      grid.first_row + grid.tiles / grid.across <= x.size(0) * grid.down,
                  "winograd: the tiles do not suit the pictures");
}

const float* checked_bias(const Tensor& bias, int64_t channels) {
  STD_TORCH_CHECK(
      bias.numel() == channels && bias.is_contiguous() && bias.scalar_type() == ScalarType::Float,
      "winograd: bias must be [C], float32");
  return static_cast<const float*>(bias.const_data_ptr());
}

void winograd_points(const Tensor& x, Tensor points, int64_t side, int64_t step, int64_t pad,
                     int64_t down, int64_t across, int64_t first_row, bool turned) {
  const Grid grid{side, step, pad, down, across, first_row, points.size(1)};
  check(x, points, grid, 2, kPoints);
  if (points.numel() == 0) return;
  const auto pictures = strided(x, static_cast<const float*>(x.const_data_ptr()));
  auto* all = static_cast<float*>(points.mutable_data_ptr());
  const int64_t channels = x.size(1), plane = points.stride(0), line = points.stride(1);
  grid.for_each(channels, [&](int64_t tile, int64_t image, int64_t top, int64_t left) {
    const float zeros[kLane] = {};
    float copied[kPoints * kPoints][kLane];
    Tile<const float> from;
    Tile<float> to;
    for (int64_t first = 0; first < channels; first += kLane) {
      const int64_t width = std::min(kLane, channels - first);
      for (int64_t i = 0; i < side * side; ++i) {
        const int64_t pixel = turned ? side * side - 1 - i : i;
        const float* value = pictures.at(image, first, top + pixel / side, left + pixel % side);
        from[i] = value ? value : zeros;
        if (value && pictures.apart()) {
          pictures.load(value, width, copied[i]);
          from[i] = copied[i];
        }
      }
      for (int64_t i = 0; i < kPoints * kPoints; ++i) to[i] = all + i * plane + tile * line + first;
      to_points(side, from, to, width);
    }
  });
}

void winograd_pixels(const Tensor& points, Tensor y, const std::optional<Tensor>& bias,
                     int64_t side, int64_t down, int64_t across, int64_t first_row) {
  const Grid grid{side, side, 0, down, across, first_row, points.size(1)};
  check(y, points, grid, 2, kPoints - 1);
  const float* shift = bias ? checked_bias(*bias, y.size(1)) : nullptr;
  if (points.numel() == 0) return;
  const auto pictures = strided(y, static_cast<float*>(y.mutable_data_ptr()));
  if (first_row == 0) advise_huge_pages(pictures.data, pictures.span() * sizeof(float));
  const auto* all = static_cast<const float*>(points.const_data_ptr());
  const int64_t channels = y.size(1), plane = points.stride(0), line = points.stride(1);
  grid.for_each(channels, [&](int64_t tile, int64_t image, int64_t top, int64_t left) {
    float copied[kPoints * kPoints][kLane];
    Tile<const float> from;
    Tile<float> to;
    for (int64_t first = 0; first < channels; first += kLane) {
      const int64_t width = std::min(kLane, channels - first);
      const auto pixel = [&](int64_t i) {
        return pictures.at(image, first, top + i / side, left + i % side);
      };
      for (int64_t i = 0; i < kPoints * kPoints; ++i) {
        from[i] = all + i * plane + tile * line + first;
      }
      for (int64_t i = 0; i < side * side; ++i) {
        float* value = pixel(i);
        to[i] = value && !pictures.apart() ? value : copied[i];
      }
      to_pixels(side, from, to, width);
      for (int64_t i = 0; i < side * side; ++i) {
        if (shift) add_bias(shift + first, width, to[i]);
        float* value = pixel(i);
        if (value && pictures.apart()) pictures.store(copied[i], width, value);
      }
    }
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pix2pixhd_fast, CPU, m) {
  m.impl("winograd_points_", TORCH_BOX(&winograd_points));
  m.impl("winograd_pixels_", TORCH_BOX(&winograd_pixels));
}
