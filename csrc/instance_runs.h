#pragma once

#include <algorithm>
#include <cstdint>

#include "narrow_float.h"
#include "simd.h"

// Runs of equal ids in an instance map: finding one, adding up its pixels, filling it.
namespace {

// A run is added to this many lanes for each channel.
constexpr int64_t kLanePixels = 16;

[[gnu::always_inline]] inline double widened(double x) { return x; }
[[gnu::always_inline]] inline float widened(float x) { return x; }
[[gnu::always_inline]] inline float widened(Half x) { return to_float(x); }
[[gnu::always_inline]] inline float widened(BFloat16 x) { return to_float(x); }

// One image: [channels, pixels], with `last` [pixels, channels].
struct Layout {
  int64_t channels, pixels;
  bool last;

  int64_t offset(int64_t pixel) const { return last ? pixel * channels : pixel; }
  // Of kLanePixels pixels: [channels, kLanePixels], with `last` [kLanePixels, channels].
  int64_t lanes() const { return channels * kLanePixels; }
};

// lanes[r, i % kWidth] += x[r, i] for i < count. The last values, fewer than kWidth, are those at
// the end of a whole load.
template <int64_t kRows, int64_t kWidth, typename T, typename Wide>
[[gnu::always_inline]] inline void add_rows(const T* x, int64_t stride, int64_t count,
                                            Wide* lanes) {
  if (count < kWidth) {
    for (int64_t r = 0; r < kRows; ++r) {
      for (int64_t i = 0; i < count; ++i) lanes[r * kWidth + i] += widened(x[r * stride + i]);
    }
    return;
  }
  Wide sums[kRows * kWidth];
  std::copy_n(lanes, kRows * kWidth, sums);
  for (; count >= kWidth; count -= kWidth, x += kWidth) {
    for (int64_t r = 0; r < kRows; ++r) {
      for (int64_t i = 0; i < kWidth; ++i) sums[r * kWidth + i] += widened(x[r * stride + i]);
    }
  }
  x -= kWidth - count;
  for (int64_t r = 0; r < kRows; ++r) {
    for (int64_t i = 0; i < kWidth; ++i) {
      const Wide value = widened(x[r * stride + i]);
      sums[r * kWidth + i] += i >= kWidth - count ? value : Wide{0};
    }
  }
  std::copy_n(sums, kRows * kWidth, lanes);
}

// `count` pixels from x on.
template <typename T, typename Wide>
[[gnu::always_inline]] inline void add_run_of(const T* x, int64_t count, const Layout& layout,
                                              Wide* lanes) {
  constexpr int64_t kWidth = kLanePixels;
  const int64_t channels = layout.channels, width = layout.lanes();
  if (!layout.last) {
    if (channels == 3) return add_rows<3, kWidth>(x, layout.pixels, count, lanes);
    for (int64_t c = 0; c < channels; ++c) {
      add_rows<1, kWidth>(x + c * layout.pixels, 0, count, lanes + c * kWidth);
    }
    return;
  }
  if (channels == 3) return add_rows<1, 3 * kWidth>(x, 0, 3 * count, lanes);
  for (count *= channels; count > 0; count -= width, x += width) {
    for (int64_t i = 0; i < std::min(count, width); ++i) lanes[i] += widened(x[i]);
  }
}

// y[r, i] = lanes[r, i % kWidth] for i < count, in whole stores as far as there is `room`: what
// they write behind the run is written again with the next one.
template <int64_t kRows, int64_t kWidth, typename T>
[[gnu::always_inline]] inline void fill_rows(T* y, int64_t stride, int64_t count, int64_t room,
                                             const T* lanes) {
  T values[kRows * kWidth];
  std::copy_n(lanes, kRows * kWidth, values);
  for (; count > 0 && room >= kWidth; count -= kWidth, room -= kWidth, y += kWidth) {
    for (int64_t r = 0; r < kRows; ++r) {
      for (int64_t i = 0; i < kWidth; ++i) y[r * stride + i] = values[r * kWidth + i];
    }
  }
  for (int64_t i = 0; i < count; ++i) {
    for (int64_t r = 0; r < kRows; ++r) y[r * stride + i] = values[r * kWidth + i % kWidth];
  }
}

// `count` pixels from y on; those behind them, up to `room`, may change.
template <typename T>
[[gnu::always_inline]] inline void fill_run_of(T* y, int64_t count, int64_t room,
                                               const Layout& layout, const T* lanes) {
  constexpr int64_t kWidth = kLanePixels;
  const int64_t channels = layout.channels, width = layout.lanes();
  if (!layout.last) {
    if (channels == 3) return fill_rows<3, kWidth>(y, layout.pixels, count, room, lanes);
    for (int64_t c = 0; c < channels; ++c) {
      fill_rows<1, kWidth>(y + c * layout.pixels, 0, count, room, lanes + c * kWidth);
    }
    return;
  }
  if (channels == 3) return fill_rows<1, 3 * kWidth>(y, 0, 3 * count, 3 * room, lanes);
  for (count *= channels; count > 0; count -= width, y += width) {
    std::copy_n(lanes, std::min(count, width), y);
  }
}

// The first pixel at or behind `p` whose id is not that of `p`, at most `end`.
template <typename Id>
[[gnu::always_inline]] inline int64_t run_end_of(const Id* ids, int64_t p, int64_t end) {
  constexpr int64_t kWidth = 32;
  const Id id = ids[p];
  for (; p + kWidth <= end; p += kWidth) {
    Id equal = kWidth;
    for (int64_t i = 0; i < kWidth; ++i) {
      equal = std::min(equal, ids[p + i] == id ? Id{kWidth} : static_cast<Id>(i));
    }
    if (equal < kWidth) return p + equal;
  }
  while (p < end && ids[p] == id) ++p;
  return p;
}

PIX2PIXHD_FAST_SIMD void add_run(const float* x, int64_t count, const Layout& layout,
                                 float* lanes) {
  add_run_of(x, count, layout, lanes);
}
PIX2PIXHD_FAST_SIMD void fill_run(float* y, int64_t count, int64_t room, const Layout& layout,
                                  const float* lanes) {
  fill_run_of(y, count, room, layout, lanes);
}
PIX2PIXHD_FAST_SIMD void add_run(const double* x, int64_t count, const Layout& layout,
                                 double* lanes) {
  add_run_of(x, count, layout, lanes);
}
PIX2PIXHD_FAST_SIMD void fill_run(double* y, int64_t count, int64_t room, const Layout& layout,
                                  const double* lanes) {
  fill_run_of(y, count, room, layout, lanes);
}
PIX2PIXHD_FAST_SIMD void add_run(const Half* x, int64_t count, const Layout& layout, float* lanes) {
  add_run_of(x, count, layout, lanes);
}
PIX2PIXHD_FAST_SIMD void fill_run(Half* y, int64_t count, int64_t room, const Layout& layout,
                                  const Half* lanes) {
  fill_run_of(y, count, room, layout, lanes);
}
PIX2PIXHD_FAST_SIMD void add_run(const BFloat16* x, int64_t count, const Layout& layout,
                                 float* lanes) {
  add_run_of(x, count, layout, lanes);
}
PIX2PIXHD_FAST_SIMD void fill_run(BFloat16* y, int64_t count, int64_t room, const Layout& layout,
                                  const BFloat16* lanes) {
  fill_run_of(y, count, room, layout, lanes);
}
PIX2PIXHD_FAST_SIMD int64_t run_end(const int32_t* ids, int64_t p, int64_t end) {
  return run_end_of(ids, p, end);
}
PIX2PIXHD_FAST_SIMD int64_t run_end(const int64_t* ids, int64_t p, int64_t end) {
  return run_end_of(ids, p, end);
}

}  // namespace
