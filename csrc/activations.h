#pragma once

#include <torch/csrc/stable/tensor.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <string>

#include "narrow_float.h"

// The activations and their derivatives, without branches, so that loops over them vectorise.
namespace {

enum class Act { none, relu, leaky_relu, tanh };

inline Act act_of(const std::string& name) {
  if (name == "none") return Act::none;
  if (name == "relu") return Act::relu;
  if (name == "leaky_relu") return Act::leaky_relu;
  STD_TORCH_CHECK(name == "tanh", "norm_act_pad: unknown act ", name);
  return Act::tanh;
}

// By a mask: among other arithmetic the compiler makes branches of conditional expressions, and
// where these are mispredicted a value takes 20 times as long.
[[gnu::always_inline]] inline float choose(bool condition, float yes, float no) {
  const uint32_t bits =
      select(condition, std::bit_cast<uint32_t>(yes), std::bit_cast<uint32_t>(no));
  return std::bit_cast<float>(bits);
}

// Lets a NaN through.
[[gnu::always_inline]] inline float sign_of(float d) {
  return choose(std::fabs(d) > 0.0f, std::copysign(1.0f, d), d);
}

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
  const float e = expm1_of_negative(choose(z < -20.0f, -20.0f, z));
  return std::copysign(-e / (2.0f + e), x);
}

// The comparisons let a NaN through.
template <Act act>
[[gnu::always_inline]] inline float activate(float z, float slope) {
  if constexpr (act == Act::relu) return choose(z <= 0.0f, 0.0f, z);
  if constexpr (act == Act::leaky_relu) return z * choose(z <= 0.0f, slope, 1.0f);
  if constexpr (act == Act::tanh) return tanh_of(z);
  return z;
}

template <Act act>
[[gnu::always_inline]] inline float activate_backward(float g, float z, float slope) {
  if constexpr (act == Act::relu) return choose(z <= 0.0f, 0.0f, g);
  if constexpr (act == Act::leaky_relu) return g * choose(z <= 0.0f, slope, 1.0f);
  if constexpr (act == Act::tanh) {
    const float y = tanh_of(z);
    return g * (1.0f - y * y);
  }
  return g;
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

}  // namespace
