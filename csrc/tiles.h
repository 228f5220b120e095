#pragma once

#include <algorithm>
#include <cstdint>

#include "narrow_float.h"
#include "simd.h"

// Tiles: runs of whole pixels, each of `channels` values. A tile is worked off in steps of `lanes`
// values, a whole number of pixels, so that the parameters of a channel lie in arrays of [lanes]
// and every loop is long, whatever the number of channels.
namespace {

// Calls body(i, lane) for each value of the tile.
template <typename Body>
[[gnu::always_inline]] inline void for_each_value(int64_t count, int64_t lanes, Body body) {
  for (int64_t start = 0; start < count; start += lanes) {
    const int64_t width = std::min(lanes, count - start);
#pragma GCC ivdep
    for (int64_t lane = 0; lane < width; ++lane) {
      body(start + lane, lane);
    }
  }
}

[[maybe_unused]] PIX2PIXHD_FAST_SIMD void widen(const Half* from, int64_t count, float* to) {
  for (int64_t i = 0; i < count; ++i) to[i] = to_float(from[i]);
}

[[maybe_unused]] PIX2PIXHD_FAST_SIMD void widen(const BFloat16* from, int64_t count, float* to) {
  for (int64_t i = 0; i < count; ++i) to[i] = to_float(from[i]);
}

[[maybe_unused]] PIX2PIXHD_FAST_SIMD void narrow(const float* from, int64_t count, Half* to) {
  for (int64_t i = 0; i < count; ++i) from_float(from[i], to[i]);
}

[[maybe_unused]] PIX2PIXHD_FAST_SIMD void narrow(const float* from, int64_t count, BFloat16* to) {
  for (int64_t i = 0; i < count; ++i) from_float(from[i], to[i]);
}

// sums += x
[[maybe_unused]] PIX2PIXHD_FAST_SIMD void add_tile(const float* x, int64_t count, float* sums) {
  for (int64_t i = 0; i < count; ++i) sums[i] += x[i];
}

[[maybe_unused]] PIX2PIXHD_FAST_SIMD void add_tile(const Half* x, int64_t count, float* sums) {
  for (int64_t i = 0; i < count; ++i) sums[i] += to_float(x[i]);
}

[[maybe_unused]] PIX2PIXHD_FAST_SIMD void add_tile(const BFloat16* x, int64_t count, float* sums) {
  for (int64_t i = 0; i < count; ++i) sums[i] += to_float(x[i]);
}

// values -= x
[[maybe_unused]] PIX2PIXHD_FAST_SIMD void subtract_tile(const float* x, int64_t count,
                                                        float* values) {
  for (int64_t i = 0; i < count; ++i) values[i] -= x[i];
}

[[maybe_unused]] PIX2PIXHD_FAST_SIMD void subtract_tile(const Half* x, int64_t count,
                                                        float* values) {
  for (int64_t i = 0; i < count; ++i) values[i] -= to_float(x[i]);
}

[[maybe_unused]] PIX2PIXHD_FAST_SIMD void subtract_tile(const BFloat16* x, int64_t count,
                                                        float* values) {
  for (int64_t i = 0; i < count; ++i) values[i] -= to_float(x[i]);
}

// The values of a tile as floats: where they lie, or converted into `buffer`.
inline const float* load_tile(const float* from, int64_t, float*) { return from; }

template <typename T>
const float* load_tile(const T* from, int64_t count, float* buffer) {
  widen(from, count, buffer);
  return buffer;
}

// Where to write the floats of a tile that goes to `to`, and the second half of the way.
inline float* tile_target(float* to, float*) { return to; }
inline void store_tile(const float*, int64_t, float*) {}

template <typename T>
float* tile_target(T*, float* buffer) {
  return buffer;
}

template <typename T>
void store_tile(const float* buffer, int64_t count, T* to) {
  narrow(buffer, count, to);
}

// The values of a tile as floats that may be changed: in `buffer`.
inline float* copy_tile(const float* from, int64_t count, float* buffer) {
  return std::copy_n(from, count, buffer) - count;
}

template <typename T>
float* copy_tile(const T* from, int64_t count, float* buffer) {
  widen(from, count, buffer);
  return buffer;
}

// The values of a tile as floats that go back by `store_tile` once they are changed.
inline float* tile_to_change(float* values, int64_t, float*) { return values; }

template <typename T>
float* tile_to_change(T* values, int64_t count, float* buffer) {
  return copy_tile(values, count, buffer);
}

inline void write_tile(const float* from, int64_t count, float* to) {
  std::copy_n(from, count, to);
}

template <typename T>
void write_tile(const float* from, int64_t count, T* to) {
  narrow(from, count, to);
}

}  // namespace
