#pragma once

// What every byte of a buffer has seen: whether it was written, by whom it was last written and
// read.

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace cuda_on_cpu {

// When a thread did something. `thread` counts over the grid, from 1; 0: nobody yet.
struct Moment {
  uint32_t thread = 0;
  uint32_t barriers = 0;  // __syncthreads that its block had passed
  uint32_t clock = 0;     // __syncwarp that it had passed itself, from 1
};

struct Byte {
  Moment write;
  Moment reads[2];
  bool written = false;
  bool atomically = false;  // how `write` was done
};

struct Buffer {
  std::string name;
  uintptr_t begin;
  uintptr_t end;
  bool writable;
  bool shared;
  std::vector<Byte> bytes;

  Buffer(std::string name, const void* address, size_t size, bool writable, bool shared);
  void forget(bool written);  // as if new
  void settle();              // what was written was written before all that follows
  size_t unwritten() const;
};

Buffer* find_buffer(std::vector<Buffer>& buffers, uintptr_t address);
// "byte 12 of ids", or how far from the nearest buffer.
std::string place(const std::vector<Buffer>& buffers, uintptr_t address);

enum class Access { kRead, kWrite, kAtomic };

// The present moment of the running thread, and which moments of others it is sure to come after.
struct Now {
  Moment moment;
  uint32_t block_begin;  // first and last `thread` of the block
  uint32_t block_end;
  const uint32_t* warp_clocks;  // [32]: per lane, the latest clock known through __syncwarp

  bool comes_after(const Moment& other) const;
};

// Checks one access to bytes that all lie in `buffer`, records it, and returns what is wrong with
// it (or nullptr); `other` becomes the moment that it collides with.
const char* touch(Buffer& buffer, uintptr_t address, size_t size, Access access, const Now& now,
                  Moment& other);

// By model.cpp, for the running thread; `caller` is an address in the code that made the access.
bool in_kernel();
void check_access(const void* address, size_t size, Access access, const void* caller);
[[noreturn]] void report(const std::string& message, const void* caller);

}  // namespace cuda_on_cpu
