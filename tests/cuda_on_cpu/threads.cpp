#include "threads.h"

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstring>

namespace cuda_on_cpu {

std::string text(const char* format, ...) {
  char line[512];
  va_list values;
  va_start(values, format);
  vsnprintf(line, sizeof(line), format, values);
  va_end(values);
  return line;
}

std::string name_of(uint64_t thread) {
  const uint64_t inside = thread % thread_count, block = thread / thread_count;
  const auto part = [](uint64_t index, unsigned size) {
    return static_cast<unsigned>(index % size);
  };
  return text("thread (%u, %u, %u) of block (%u, %u, %u)", part(inside, blockDim.x),
              part(inside / blockDim.x, blockDim.y),
              part(inside / blockDim.x / blockDim.y, blockDim.z), part(block, gridDim.x),
              part(block / gridDim.x, gridDim.y), part(block / gridDim.x / gridDim.y, gridDim.z));
}

std::string name_of(const Thread& thread) {
  return name_of(block_number * thread_count + number(thread));
}

std::string name_of(const Site& site) {
  return text("%s (%s:%d)", site.name, site.file, site.line);
}

void open_barrier() {
  int votes = 0;
  for (unsigned i = 0; i < thread_count; ++i) {
    if (threads[i].state != State::kAtBarrier) {
      return;
    }
    votes += threads[i].predicate;
  }
  for (unsigned i = 0; i < thread_count; ++i) {
    const Site &mine = threads[i].site, &first = threads[0].site;
    if (mine.line != first.line || std::strcmp(mine.file, first.file)) {
      first_error = name_of(threads[i]) + " waits at " + name_of(mine) + ", and " +
                    name_of(threads[0]) + " at another: " + name_of(first);
      return;
    }
    const bool whole = threads[i].vote == Vote::kAnd;
    threads[i].predicate = threads[i].vote == Vote::kCount ? votes
                           : whole                         ? votes == static_cast<int>(thread_count)
                                                           : votes > 0;
    threads[i].state = State::kReady;
  }
  ++barriers_passed;
}

namespace {

// Afterwards every lane of the mask comes after what any of them had come after.
void order_memory(Thread* warp, unsigned mask) {
  uint32_t latest[32] = {};
  for (unsigned lane = 0; lane < 32; ++lane) {
    for (unsigned i = 0; i < 32 && mask >> lane & 1; ++i) {
      latest[i] = std::max(latest[i], warp[lane].warp_clocks[i]);
    }
  }
  for (unsigned lane = 0; lane < 32; ++lane) {
    if (mask >> lane & 1) {
      std::copy_n(latest, 32, warp[lane].warp_clocks);
      ++warp[lane].warp_clocks[lane];
    }
  }
}

bool same_meeting(const Thread& a, const Thread& b) {
  return a.state == State::kAtWarp && a.mask == b.mask && !std::strcmp(a.site.name, b.site.name);
}

}  // namespace

void open_meeting(const Thread& thread) {
  Thread* warp = threads + number(thread) / 32 * 32;
  const unsigned mask = thread.mask;
  uint64_t values[32] = {};
  for (unsigned lane = 0; lane < 32; ++lane) {
    if (mask >> lane & 1) {
      if (!same_meeting(warp[lane], thread)) {
        return;
      }
      values[lane] = warp[lane].value;
    }
  }
  if (thread.orders_memory) {
    order_memory(warp, mask);
  }
  for (unsigned lane = 0; lane < 32; ++lane) {
    if (mask >> lane & 1) {
      std::copy_n(values, 32, warp[lane].values);
      warp[lane].state = State::kReady;
    }
  }
}

std::string describe_deadlock() {
  const Thread* waiting = nullptr;
  for (unsigned i = 0; i < thread_count && !waiting; ++i) {
    waiting = threads[i].state == State::kDone ? nullptr : &threads[i];
  }
  const bool at_warp = waiting->state == State::kAtWarp;
  const Thread* absent = nullptr;
  for (unsigned i = 0; i < thread_count && !absent; ++i) {
    const bool named = number(*waiting) / 32 == i / 32 && waiting->mask >> i % 32 & 1;
    const bool came =
        at_warp ? !named || same_meeting(threads[i], *waiting) : threads[i].state == waiting->state;
    absent = came ? nullptr : &threads[i];
  }
  const std::string mask = at_warp ? text(" with mask 0x%08x", waiting->mask) : "";
  std::string reason = "a lane of the mask that the block does not have";
  if (absent) {
    reason = name_of(*absent) + (absent->state == State::kDone
                                     ? ", which has ended"
                                     : ", which waits at " + name_of(absent->site));
  }
  return "deadlock: " + name_of(*waiting) + " waits at " + name_of(waiting->site) + mask + " for " +
         reason;
}

}  // namespace cuda_on_cpu
