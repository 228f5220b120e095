#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>

#include "narrow_float.h"
#include "simd.h"

// The arithmetic of norm_act_pad on tiles: runs of whole pixels, each of `channels` values. A tile
// is worked off in steps of `lanes` values, a whole number of pixels, so that the parameters of a
// channel lie in arrays of [lanes] and every loop is long, whatever the number of channels.
namespace {

enum class Act { none, relu, leaky_relu, tanh };

// exp(z) - 1 for z in [-20, 0]: 2^n * (exp(r) - 1) + (2^n - 1), |r| <= ln(2) / 2, where the Taylor
// polynomial of degree 7 is 1.5e-8 off.
[[gnu::always_inline]] inline float expm1_of_negative(float z) {
  constexpr float kRound = 0x1.8p23f;
  const float shifted = z * 0x1.715476p0f + kRound;
  const float n = shifted - kRound;
  const float r = (z - n * 0x1.62ep-1f) - n * 0x1.0bfbe8p-15f;
  float p = 1.0f / 5040;
  p = p * r + 1.0f / 720;
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * r * r + r;
  const uint32_t exponent = std::bit_cast<uint32_t>(shifted) - std::bit_cast<uint32_t>(kRound);
  const float scale = std::bit_cast<float>((exponent + 127u) << 23);
  return scale * p + (scale - 1.0f);
}

[[gnu::always_inline]] inline float tanh_of(float x) {
  const float z = -2.0f * std::fabs(x);
  const float e = expm1_of_negative(z < -20.0f ? -20.0f : z);
  return std::copysign(-e / (2.0f + e), x);
}

// The comparisons let a NaN through.
template <Act act>
[[gnu::always_inline]] inline float activate(float xhat, float slope) {
  if constexpr (act == Act::relu) return xhat <= 0.0f ? 0.0f : xhat;
  if constexpr (act == Act::leaky_relu) return xhat <= 0.0f ? xhat * slope : xhat;
  if constexpr (act == Act::tanh) return tanh_of(xhat);
  return xhat;
}

template <Act act>
[[gnu::always_inline]] inline float activate_backward(float g, float xhat, float slope) {
  if constexpr (act == Act::relu) return xhat <= 0.0f ? 0.0f : g;
  if constexpr (act == Act::leaky_relu) return xhat <= 0.0f ? g * slope : g;
  if constexpr (act == Act::tanh) {
    const float y = tanh_of(xhat);
    return g * (1.0f - y * y);
  }
  return g;
}

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

// Calls body.operator()<act>(), so that the inner loop knows its activation.
template <typename Body>
[[gnu::always_inline]] inline void with_act(Act act, Body body) {
  switch (act) {
    case Act::none:
      return body.template operator()<Act::none>();
    case Act::relu:
      return body.template operator()<Act::relu>();
    case Act::leaky_relu:
      return body.template operator()<Act::leaky_relu>();
    case Act::tanh:
      return body.template operator()<Act::tanh>();
  }
}

// sums += x - shift and squares += (x - shift)^2
PIX2PIXHD_FAST_SIMD
void add_moments(const float* x, int64_t count, int64_t lanes, const float* shift, float* sums,
                 float* squares) {
  for_each_value(count, lanes, [=](int64_t i, int64_t lane) __attribute__((always_inline)) {
    const float d = x[i] - shift[lane];
    sums[lane] += d;
    squares[lane] += d * d;
  });
}

// y = act((x - mean) * rstd); y may be x.
PIX2PIXHD_FAST_SIMD
void normalise(const float* x, int64_t count, int64_t lanes, const float* mean, const float* rstd,
               Act act, float slope, float* y) {
  with_act(act, [=]<Act a>() __attribute__((always_inline)) {
    for_each_value(count, lanes, [=](int64_t i, int64_t lane) __attribute__((always_inline)) {
      y[i] = activate<a>((x[i] - mean[lane]) * rstd[lane], slope);
    });
  });
}

// sums += g and dots += g * xhat, where g = dy * act'(xhat)
PIX2PIXHD_FAST_SIMD
void add_gradients(const float* dy, const float* x, int64_t count, int64_t lanes, const float* mean,
                   const float* rstd, Act act, float slope, float* sums, float* dots) {
  with_act(act, [=]<Act a>() __attribute__((always_inline)) {
    for_each_value(count, lanes, [=](int64_t i, int64_t lane) __attribute__((always_inline)) {
      const float xhat = (x[i] - mean[lane]) * rstd[lane];
      const float g = activate_backward<a>(dy[i], xhat, slope);
      sums[lane] += g;
      dots[lane] += g * xhat;
    });
  });
}

// dx = rstd * (g - mean_g - xhat * mean_dot); dx may be dy or x.
PIX2PIXHD_FAST_SIMD
void normalise_backward(const float* dy, const float* x, int64_t count, int64_t lanes,
                        const float* mean, const float* rstd, const float* mean_g,
                        const float* mean_dot, Act act, float slope, float* dx) {
  with_act(act, [=]<Act a>() __attribute__((always_inline)) {
    for_each_value(count, lanes, [=](int64_t i, int64_t lane) __attribute__((always_inline)) {
      const float xhat = (x[i] - mean[lane]) * rstd[lane];
      const float g = activate_backward<a>(dy[i], xhat, slope);
      dx[i] = rstd[lane] * (g - mean_g[lane] - xhat * mean_dot[lane]);
    });
  });
}

PIX2PIXHD_FAST_SIMD
void widen(const Half* from, int64_t count, float* to) {
  for (int64_t i = 0; i < count; ++i) to[i] = to_float(from[i]);
}

PIX2PIXHD_FAST_SIMD
void widen(const BFloat16* from, int64_t count, float* to) {
  for (int64_t i = 0; i < count; ++i) to[i] = to_float(from[i]);
}

PIX2PIXHD_FAST_SIMD
void narrow(const float* from, int64_t count, Half* to) {
  for (int64_t i = 0; i < count; ++i) from_float(from[i], to[i]);
}

PIX2PIXHD_FAST_SIMD
void narrow(const float* from, int64_t count, BFloat16* to) {
  for (int64_t i = 0; i < count; ++i) from_float(from[i], to[i]);
}

// sums += x
PIX2PIXHD_FAST_SIMD
void add_tile(const float* x, int64_t count, float* sums) {
  for (int64_t i = 0; i < count; ++i) sums[i] += x[i];
}

PIX2PIXHD_FAST_SIMD
void add_tile(const Half* x, int64_t count, float* sums) {
  for (int64_t i = 0; i < count; ++i) sums[i] += to_float(x[i]);
}

PIX2PIXHD_FAST_SIMD
void add_tile(const BFloat16* x, int64_t count, float* sums) {
  for (int64_t i = 0; i < count; ++i) sums[i] += to_float(x[i]);
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

}  // namespace
