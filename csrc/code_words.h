#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstring>

#include "simd.h"

// Codes of 1, 2 or 4 bits for each element, eight of them in a word, as ops/relu_codes.py describes
// them; and the same as bytes, one for each element, which vector loops read and write.
namespace {

static_assert(std::endian::native == std::endian::little);

constexpr int64_t kGroup = 8;

inline int64_t code_bytes(int64_t elements, int bits) {
  return (elements + kGroup - 1) / kGroup * bits;
}

// codes [count] -> bytes. Each product moves the first codes of a word next to each other into its
// highest byte: none of the others meet there.
template <int bits>
void pack(const uint8_t* codes, int64_t count, uint8_t* to) {
  constexpr int64_t per_byte = 8 / bits;
  const auto packed = [](const uint8_t* from, int64_t n) {
    uint64_t word = 0;
    std::memcpy(&word, from, n);
    if constexpr (bits == 1) return static_cast<uint8_t>(word * 0x0102040810204080u >> 56);
    if constexpr (bits == 2) {
      return static_cast<uint8_t>(static_cast<uint32_t>(word) * 0x01041040u >> 24);
    }
    return static_cast<uint8_t>(word | word >> 4);
  };
  const int64_t whole = count / per_byte;
  for (int64_t i = 0; i < whole; ++i) to[i] = packed(codes + i * per_byte, per_byte);
  const int64_t bytes = code_bytes(count, bits);
  if (whole < bytes) {
    std::fill(to + whole, to + bytes, uint8_t{0});
    to[whole] = packed(codes + whole * per_byte, count - whole * per_byte);
  }
}

template <int bits>
[[gnu::always_inline]] inline void unpack_words(const uint8_t* from, int64_t count, uint8_t* to) {
  constexpr int per_byte = 8 / bits;
  const int64_t bytes = code_bytes(count, bits);
  for (int64_t i = 0; i < bytes; ++i) {
    for (int k = 0; k < per_byte; ++k) {
      to[i * per_byte + k] = from[i] >> (k * bits) & ((1 << bits) - 1);
    }
  }
}

// The inverse of `pack`. `to` has room for whole words.
[[maybe_unused]] PIX2PIXHD_FAST_SIMD void unpack(const uint8_t* from, int64_t count, int bits,
                                                 uint8_t* to) {
  if (bits == 1) return unpack_words<1>(from, count, to);
  if (bits == 2) return unpack_words<2>(from, count, to);
  unpack_words<4>(from, count, to);
}

}  // namespace
