#pragma once

#include <bit>
#include <cstdint>

// The 16-bit dtypes as they lie in memory, and their conversions without branches, so that a loop
// over them vectorises on every instruction set.
struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

[[gnu::always_inline]] inline float to_float(BFloat16 value) {
  return std::bit_cast<float>(static_cast<uint32_t>(value.bits) << 16);
}

[[gnu::always_inline]] inline float to_float(Half value) {
  const uint32_t magnitude = static_cast<uint32_t>(value.bits & 0x7fffu) << 13;
  // The exponents of the two formats differ by 112; this scales subnormal values as well.
  const uint32_t scaled = std::bit_cast<uint32_t>(std::bit_cast<float>(magnitude) * 0x1p112f);
  const uint32_t not_finite = (value.bits & 0x7c00u) == 0x7c00u ? 0x7f800000u : 0u;
  const uint32_t sign = static_cast<uint32_t>(value.bits & 0x8000u) << 16;
  return std::bit_cast<float>(scaled | not_finite | sign);
}

// A mask, since around a float addition the compiler makes a branch of a conditional expression.
[[gnu::always_inline]] inline uint32_t select(bool condition, uint32_t yes, uint32_t no) {
  const uint32_t mask = 0u - static_cast<uint32_t>(condition);
  return (yes & mask) | (no & ~mask);
}

// To the nearest, ties to even. A NaN must be a quiet one, as results of arithmetic are.
[[gnu::always_inline]] inline void from_float(float value, BFloat16& rounded) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint32_t half_a_unit = 0x7fffu + ((bits >> 16) & 1u);
  // Added to a NaN it might overflow into the sign.
  const uint32_t added = select((bits & 0x7fffffffu) > 0x7f800000u, 0u, half_a_unit);
  rounded.bits = static_cast<uint16_t>((bits + added) >> 16);
}

[[gnu::always_inline]] inline void from_float(float value, Half& rounded) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint32_t magnitude = bits & 0x7fffffffu;
  // One unit in the last place of 0.5f is the smallest subnormal half.
  const float shifted = std::bit_cast<float>(magnitude) + 0.5f;
  const uint32_t subnormal = std::bit_cast<uint32_t>(shifted) - 0x3f000000u;
  const uint32_t normal = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  uint32_t nearest = select(magnitude < 0x38800000u, subnormal, normal);
  nearest = select(magnitude >= 0x47800000u, 0x7c00u, nearest);
  nearest = select(magnitude > 0x7f800000u, 0x7e00u, nearest);
  rounded.bits = static_cast<uint16_t>(nearest | (bits >> 16 & 0x8000u));
}
