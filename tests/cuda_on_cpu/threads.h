#pragma once

// The threads of the block that runs, and where they wait for one another.

#include <setjmp.h>

#include <string>

#include "cuda_on_cpu.h"

namespace cuda_on_cpu {

constexpr unsigned kMaxThreads = 1024;

enum class State { kReady, kAtBarrier, kAtWarp, kDone };

struct Thread {
  uint3 index;
  State state;
  Site site;  // what it waits at
  unsigned mask;
  bool orders_memory;
  Vote vote;
  int predicate;
  uint64_t value;
  uint64_t values[32];  // of all lanes, as of the last meeting
  uint32_t warp_clocks[32];
  jmp_buf resume;
  bool started;
};

// In static memory, which device code may look at: it reads `values`.
extern Thread threads[kMaxThreads];
extern unsigned thread_count;
extern uint64_t block_number;
extern uint32_t barriers_passed;
extern std::string first_error;

inline unsigned number(const Thread& thread) { return &thread - threads; }

std::string text(const char* format, ...) __attribute__((format(printf, 1, 2)));
std::string name_of(uint64_t thread);  // counted over the grid, from 0
std::string name_of(const Thread& thread);
std::string name_of(const Site& site);

// Lets the block through where all of its threads have come.
void open_barrier();
// Lets the lanes of the thread's mask through where all of them have come.
void open_meeting(const Thread& thread);
// Why nobody can go on.
std::string describe_deadlock();

}  // namespace cuda_on_cpu
