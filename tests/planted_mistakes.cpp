// Mistakes that a sanitized build must stop at: what test_sanitizers.py proves itself with.

#include <cstdint>

extern "C" int64_t sum(const int32_t* numbers, int64_t count) {
  int64_t total = 0;
  for (int64_t i = 0; i < count; ++i) {
    total += numbers[i];
  }
  return total;
}

extern "C" int32_t product(int32_t a, int32_t b) { return a * b; }
