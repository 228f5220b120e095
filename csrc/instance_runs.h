#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "narrow_float.h"
#include "simd.h"

// Runs of equal ids in an instance map: finding them, adding up their pixels, filling them.
namespace {

// A run is added to this many lanes for each channel.
constexpr int kLanePixels = 16;

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

// A register of AVX2. Sums in arrays of numbers stay in memory: each addition then waits for the
// one before to be stored, and half of the time went there.
template <typename Value>
struct Register {
  static constexpr int kValues = 32 / sizeof(Value);
  typedef Value Values __attribute__((vector_size(32)));
  Values values{};

  // By reference: a vector that is passed by value has another ABI on each instruction set.
  template <typename T>
  [[gnu::always_inline]] void load(const T* from) {
    if constexpr (std::is_same_v<T, Value>) {
      std::memcpy(&values, from, sizeof values);
    } else {
      for (int i = 0; i < kValues; ++i) values[i] = widened(from[i]);
    }
  }

  [[gnu::always_inline]] void store(Value* to) const { std::memcpy(to, &values, sizeof values); }
};

// lanes[r, i % kWidth] += x[r, i] for i < count, in whole loads as far as there is `room`.
template <int kRows, int kWidth, typename T, typename Wide>
[[gnu::always_inline]] inline void add_rows(const T* x, int64_t stride, int64_t count, int64_t room,
                                            Wide* lanes) {
  using Index = std::conditional_t<sizeof(Wide) == 8, int64_t, int32_t>;
  constexpr int kValues = Register<Wide>::kValues, kRegisters = kWidth / kValues;
  Register<Wide> sums[kRows * kRegisters], more;
#pragma GCC unroll 16
  for (int k = 0; k < kRows * kRegisters; ++k) sums[k].load(lanes + k * kValues);
  for (; count >= kWidth; count -= kWidth, room -= kWidth, x += kWidth) {
#pragma GCC unroll 16
    for (int k = 0; k < kRows * kRegisters; ++k) {
      more.load(x + k / kRegisters * stride + k % kRegisters * kValues);
      sums[k].values += more.values;
    }
  }
  if (count > 0 && room >= kWidth) {
    typename Register<Index>::Values index;
    for (int i = 0; i < kValues; ++i) index[i] = i;
#pragma GCC unroll 16
    for (int k = 0; k < kRows * kRegisters; ++k) {
      more.load(x + k / kRegisters * stride + k % kRegisters * kValues);
      const Index inside = static_cast<Index>(count) - k % kRegisters * kValues;
      sums[k].values += index < inside ? more.values : decltype(more.values){};
    }
    count = 0;
  }
#pragma GCC unroll 16
  for (int k = 0; k < kRows * kRegisters; ++k) sums[k].store(lanes + k * kValues);
  for (int64_t i = 0; i < count; ++i) {
    for (int r = 0; r < kRows; ++r) lanes[r * kWidth + i] += widened(x[r * stride + i]);
  }
}

// lanes += the `count` pixels from x on; those behind them, up to `room`, may be read.
template <typename T, typename Wide>
PIX2PIXHD_FAST_SIMD void add_run(const T* x, int64_t count, int64_t room, const Layout& layout,
                                 Wide* lanes) {
  const int64_t channels = layout.channels, width = layout.lanes();
  if (!layout.last) {
    if (channels == 3) return add_rows<3, kLanePixels>(x, layout.pixels, count, room, lanes);
    for (int64_t c = 0; c < channels; ++c) {
      add_rows<1, kLanePixels>(x + c * layout.pixels, 0, count, room, lanes + c * kLanePixels);
    }
    return;
  }
  if (channels == 3) return add_rows<1, 3 * kLanePixels>(x, 0, 3 * count, 3 * room, lanes);
  for (count *= channels; count > 0; count -= width, x += width) {
    for (int64_t i = 0; i < std::min(count, width); ++i) lanes[i] += widened(x[i]);
  }
}

// y[r, i] = lanes[r, i % kWidth] for i < count, in whole stores as far as there is `room`: what
// they write behind the run is written again with the next one.
template <int kRows, int kWidth, typename T>
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

// The `count` pixels from y on = lanes; those behind them, up to `room`, may change.
template <typename T>
PIX2PIXHD_FAST_SIMD void fill_run(T* y, int64_t count, int64_t room, const Layout& layout,
                                  const T* lanes) {
  const int64_t channels = layout.channels, width = layout.lanes();
  if (!layout.last) {
    if (channels == 3) return fill_rows<3, kLanePixels>(y, layout.pixels, count, room, lanes);
    for (int64_t c = 0; c < channels; ++c) {
      fill_rows<1, kLanePixels>(y + c * layout.pixels, 0, count, room, lanes + c * kLanePixels);
    }
    return;
  }
  if (channels == 3) return fill_rows<1, 3 * kLanePixels>(y, 0, 3 * count, 3 * room, lanes);
  for (count *= channels; count > 0; count -= width, y += width) {
    std::copy_n(lanes, std::min(count, width), y);
  }
}

// Writes the ends of the runs in ids[0, count), in order, to `ends`, and returns how many they are.
// 32 comparisons give a word: what there is to guess for the processor is how many bits it has.
template <typename Id>
PIX2PIXHD_FAST_SIMD int64_t run_ends(const Id* ids, int64_t count, int32_t* ends) {
  constexpr int kWidth = 32, kValues = Register<Id>::kValues;
  Register<Id> bits[kWidth / kValues], own, before;
  for (int i = 0; i < kWidth; ++i) {
    bits[i / kValues].values[i % kValues] = static_cast<Id>(uint32_t{1} << i);
  }
  int64_t found = 0, p = 1;
  for (; p + kWidth <= count; p += kWidth) {
    Register<Id> changed{};
#pragma GCC unroll 8
    for (int k = 0; k < kWidth / kValues; ++k) {
      own.load(ids + p + k * kValues);
      before.load(ids + p + k * kValues - 1);
      changed.values |= (own.values != before.values) & bits[k].values;
    }
    uint64_t part[4];
    std::memcpy(part, &changed, sizeof part);
    uint64_t word = part[0] | part[1] | part[2] | part[3];
    if constexpr (sizeof(Id) == 4) word |= word >> 32;
    for (auto mask = static_cast<uint32_t>(word); mask != 0; mask &= mask - 1) {
      ends[found++] = static_cast<int32_t>(p + std::countr_zero(mask));
    }
  }
  for (; p < count; ++p) {
    if (ids[p] != ids[p - 1]) ends[found++] = static_cast<int32_t>(p);
  }
  ends[found++] = static_cast<int32_t>(count);
  return found;
}

}  // namespace
