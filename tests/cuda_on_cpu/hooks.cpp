// What the compiler calls in device code: before every load and store (-fsanitize=thread), before
// arithmetic that goes wrong (-fsanitize=bounds,...), for memcpy and its like (renamed in the
// object file).

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>

#include "memory.h"

using cuda_on_cpu::Access;
using cuda_on_cpu::check_access;

namespace {

// What every record of the undefined behaviour sanitizer begins with.
struct SourceLocation {
  const char* file;
  uint32_t line;
  uint32_t column;
};

void undefined(const char* what, const SourceLocation* location, const void* caller) {
  if (cuda_on_cpu::in_kernel()) {
    cuda_on_cpu::report(
        std::string(what) + " (" + location->file + ":" + std::to_string(location->line) + ")",
        caller);
  }
}

}  // namespace

#define CALLER __builtin_return_address(0)
#define HOOKS(size)                                                                           \
  void __tsan_read##size(void* p) { check_access(p, size, Access::kRead, CALLER); }           \
  void __tsan_write##size(void* p) { check_access(p, size, Access::kWrite, CALLER); }         \
  void __tsan_unaligned_read##size(void* p) { check_access(p, size, Access::kRead, CALLER); } \
  void __tsan_unaligned_write##size(void* p) { check_access(p, size, Access::kWrite, CALLER); }
#define UNDEFINED(hook, what) \
  void __ubsan_handle_##hook(const SourceLocation* location) { undefined(what, location, CALLER); }

extern "C" {

void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
HOOKS(1)
HOOKS(2)
HOOKS(4)
HOOKS(8)
HOOKS(16)
void __tsan_read_range(void* p, size_t size) { check_access(p, size, Access::kRead, CALLER); }
void __tsan_write_range(void* p, size_t size) { check_access(p, size, Access::kWrite, CALLER); }

UNDEFINED(out_of_bounds, "an index is out of bounds of its array")
UNDEFINED(type_mismatch_v1, "an address is not aligned for its type")
UNDEFINED(shift_out_of_bounds, "a shift is not below the width of its type")
UNDEFINED(add_overflow, "an integer addition overflows")
UNDEFINED(sub_overflow, "an integer subtraction overflows")
UNDEFINED(mul_overflow, "an integer multiplication overflows")
UNDEFINED(negate_overflow, "an integer negation overflows")
UNDEFINED(divrem_overflow, "an integer division by zero, or one that overflows")

void* cuda_on_cpu_memcpy(void* to, const void* from, size_t size) {
  check_access(from, size, Access::kRead, CALLER);
  check_access(to, size, Access::kWrite, CALLER);
  return std::memcpy(to, from, size);
}

void* cuda_on_cpu_memmove(void* to, const void* from, size_t size) {
  check_access(from, size, Access::kRead, CALLER);
  check_access(to, size, Access::kWrite, CALLER);
  return std::memmove(to, from, size);
}

void* cuda_on_cpu_memset(void* to, int value, size_t size) {
  check_access(to, size, Access::kWrite, CALLER);
  return std::memset(to, value, size);
}

}  // extern "C"
