#include "memory.h"

#include <algorithm>
#include <utility>

namespace cuda_on_cpu {

Buffer::Buffer(std::string name, const void* address, size_t size, bool writable, bool shared)
    : name(std::move(name)),
      begin(reinterpret_cast<uintptr_t>(address)),
      end(begin + size),
      writable(writable),
      shared(shared),
      bytes(size) {}

void Buffer::forget(bool written) {
  Byte fresh;
  fresh.written = written;
  std::fill(bytes.begin(), bytes.end(), fresh);
}

void Buffer::settle() {
  for (Byte& byte : bytes) {
    Byte fresh;
    fresh.written = byte.written;
    byte = fresh;
  }
}

size_t Buffer::unwritten() const {
  return std::count_if(bytes.begin(), bytes.end(), [](const Byte& byte) { return !byte.written; });
}

Buffer* find_buffer(std::vector<Buffer>& buffers, uintptr_t address) {
  for (Buffer& buffer : buffers) {
    if (buffer.begin <= address && address < buffer.end) {
      return &buffer;
    }
  }
  return nullptr;
}

std::string place(const std::vector<Buffer>& buffers, uintptr_t address) {
  std::string nearest = "an address in no buffer";
  uintptr_t least = UINTPTR_MAX;
  for (const Buffer& buffer : buffers) {
    if (buffer.begin <= address && address < buffer.end) {
      return "byte " + std::to_string(address - buffer.begin) + " of " + buffer.name;
    }
    const bool before = address < buffer.begin;
    const uintptr_t gap = before ? buffer.begin - address : address - buffer.end;
    if (gap < least) {
      least = gap;
      nearest = std::to_string(gap) + (before ? " bytes before " : " bytes past the end of ") +
                buffer.name;
    }
  }
  return nearest;
}

bool Now::comes_after(const Moment& other) const {
  if (other.thread == 0 || other.thread == moment.thread) {
    return true;
  }
  if (other.thread < block_begin || other.thread > block_end) {
    return false;
  }
  if (other.barriers < moment.barriers) {
    return true;
  }
  const uint32_t mine = moment.thread - block_begin, theirs = other.thread - block_begin;
  return mine / 32 == theirs / 32 && other.clock <= warp_clocks[theirs % 32];
}

namespace {

// Two readers are remembered: one that this thread comes after is forgotten first.
void remember_read(Byte& byte, const Now& now) {
  for (Moment& read : byte.reads) {
    if (read.thread == now.moment.thread) {
      read = now.moment;
      return;
    }
  }
  Moment* place = now.comes_after(byte.reads[0]) ? &byte.reads[0] : &byte.reads[1];
  *place = now.moment;
}

const char* read(Byte& byte, const Now& now, Moment& other) {
  if (!byte.written) {
    return "reads memory that nobody has written";
  }
  if (!now.comes_after(byte.write)) {
    other = byte.write;
    return "reads what another thread writes, with no barrier between them";
  }
  remember_read(byte, now);
  return nullptr;
}

const char* write(Byte& byte, bool atomic, const Now& now, Moment& other) {
  if (atomic && !byte.written) {
    return "updates memory that nobody has written";
  }
  if (!(atomic && byte.atomically) && !now.comes_after(byte.write)) {
    other = byte.write;
    return "writes what another thread writes, with no barrier between them";
  }
  for (const Moment& read : byte.reads) {
    if (!now.comes_after(read)) {
      other = read;
      return "writes what another thread reads, with no barrier between them";
    }
  }
  byte.write = now.moment;
  byte.atomically = atomic;
  byte.written = true;
  return nullptr;
}

}  // namespace

const char* touch(Buffer& buffer, uintptr_t address, size_t size, Access access, const Now& now,
                  Moment& other) {
  if (access != Access::kRead && !buffer.writable) {
    return "writes to an input";
  }
  Byte* bytes = &buffer.bytes[address - buffer.begin];
  for (size_t i = 0; i < size; ++i) {
    const char* error = access == Access::kRead
                            ? read(bytes[i], now, other)
                            : write(bytes[i], access == Access::kAtomic, now, other);
    if (error) {
      return error;
    }
  }
  return nullptr;
}

}  // namespace cuda_on_cpu
