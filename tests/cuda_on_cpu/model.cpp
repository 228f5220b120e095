// The scheduler: one fiber per thread of a block, blocks one after another, everything in an order
// drawn from a seed. A thread runs until it must wait for others. The first error ends the launch.

#include <setjmp.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "cuda_on_cpu.h"
#include "memory.h"
#include "threads.h"

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace cuda_on_cpu {

Thread threads[kMaxThreads];
unsigned thread_count;
uint64_t block_number;
uint32_t barriers_passed;
std::string first_error;

namespace {

constexpr size_t kStack = 128 * 1024;
// Some ten seconds; tests need far fewer. A thread that waits in a loop for another never ends.
constexpr uint64_t kMaxAccesses = 1'000'000'000;
// The most that any of the architectures we build for lets a block have.
constexpr size_t kMaxShared = 227 * 1024;

char* stacks;
Thread* running;
jmp_buf scheduler;

void (*kernel_body)(const void*);
const void* kernel_arguments;
size_t kernel_argument_bytes;

std::mt19937_64 order;
std::vector<Buffer> buffers;
std::unique_ptr<unsigned char[]> dynamic_memory;
uint64_t accesses;

// The loader lays the static shared memory of device code around it.
thread_local char shared_anchor;

// First and last byte of this library, set by the linker.
extern "C" const char __ehdr_start[] __attribute__((visibility("hidden")));
extern "C" const char _end[] __attribute__((visibility("hidden")));

// Leaves the running thread for good.
[[noreturn]] void fail(const std::string& message) {
  if (first_error.empty()) {
    first_error = message;
  }
  _longjmp(scheduler, 1);
}

void run_kernel() {
  for (;;) {
    kernel_body(kernel_arguments);
    running->state = State::kDone;
    if (!_setjmp(running->resume)) {
      _longjmp(scheduler, 1);
    }
  }
}

void wait(State state, Site site) {
  running->state = state;
  running->site = site;
  if (!_setjmp(running->resume)) {
    _longjmp(scheduler, 1);
  }
}

// A page at the low end of each stack is left unmapped.
void make_stacks() {
  if (stacks) {
    return;
  }
  const size_t bytes = kStack * kMaxThreads;
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  stacks = static_cast<char*>(memory);
  for (unsigned i = 0; i < kMaxThreads; ++i) {
    mprotect(stacks + i * kStack, 4096, PROT_NONE);
  }
}

void resume(Thread& thread) {
  running = &thread;
  threadIdx = thread.index;
  if (!_setjmp(scheduler)) {
    if (thread.started) {
      _longjmp(thread.resume, 1);
    }
    thread.started = true;
    static ucontext_t context;
    getcontext(&context);
    context.uc_stack.ss_sp = stacks + number(thread) * kStack;
    context.uc_stack.ss_size = kStack;
    makecontext(&context, run_kernel, 0);
    setcontext(&context);
  }
  running = nullptr;
}

void start_block(uint64_t index) {
  block_number = index;
  blockIdx.x = index % gridDim.x;
  blockIdx.y = index / gridDim.x % gridDim.y;
  blockIdx.z = index / gridDim.x / gridDim.y;
  barriers_passed = 0;
  for (unsigned i = 0; i < kMaxThreads; ++i) {
    threads[i].index = {i % blockDim.x, i / blockDim.x % blockDim.y, i / blockDim.x / blockDim.y};
    threads[i].state = i < thread_count ? State::kReady : State::kDone;
    std::fill_n(threads[i].warp_clocks, 32, 0);
    threads[i].warp_clocks[i % 32] = 1;
  }
  for (Buffer& buffer : buffers) {
    if (buffer.shared) {
      buffer.forget(false);
    }
  }
}

void run_block(uint64_t index) {
  start_block(index);
  std::vector<Thread*> ready;
  unsigned done = 0;
  while (done < thread_count && first_error.empty()) {
    for (unsigned i = 0; i < thread_count; ++i) {
      if (threads[i].state == State::kReady) {
        ready.push_back(&threads[i]);
      }
    }
    if (ready.empty()) {
      first_error = describe_deadlock();
    }
    std::shuffle(ready.begin(), ready.end(), order);
    for (; !ready.empty() && first_error.empty(); ready.pop_back()) {
      Thread& thread = *ready.back();
      resume(thread);
      if (thread.state == State::kAtBarrier) {
        open_barrier();
      } else if (thread.state == State::kAtWarp) {
        open_meeting(thread);
      } else {
        ++done;
      }
    }
  }
}

// Its own stack, the arguments of the kernel, and the constants and variables of this library.
bool is_private(uintptr_t address) {
  const auto within = [address](const void* begin, size_t size) {
    return address - reinterpret_cast<uintptr_t>(begin) < size;
  };
  return within(stacks + number(*running) * kStack, kStack) ||
         within(kernel_arguments, kernel_argument_bytes) ||
         within(__ehdr_start, _end - __ehdr_start);
}

Now now() {
  const unsigned inside = number(*running);
  const auto first = static_cast<uint32_t>(block_number * thread_count + 1);
  return {{first + inside, barriers_passed, running->warp_clocks[inside % 32]},
          first,
          first + thread_count - 1,
          running->warp_clocks};
}

bool valid_launch(dim3 grid, dim3 block, size_t shared_bytes) {
  const uint64_t count = uint64_t{block.x} * block.y * block.z;
  return count >= 1 && count <= kMaxThreads && block.z <= 64 && grid.x >= 1 &&
         grid.x <= INT32_MAX && grid.y >= 1 && grid.y <= 65535 && grid.z >= 1 && grid.z <= 65535 &&
         shared_bytes <= kMaxShared;
}

}  // namespace

void check_access(const void* address, size_t size, Access access, const void* caller) {
  if (!running) {
    return;
  }
  if (++accesses > kMaxAccesses) {
    report("does not end", caller);
  }
  const auto begin = reinterpret_cast<uintptr_t>(address);
  Buffer* buffer = find_buffer(buffers, begin);
  if (!buffer && is_private(begin)) {
    return;
  }
  const char* error = "is out of bounds";
  Moment other;
  if (buffer && begin + size <= buffer->end) {
    error = touch(*buffer, begin, size, access, now(), other);
  }
  if (error) {
    const std::string collides = other.thread ? " (" + name_of(other.thread - 1) + ")" : "";
    report(text("%zu bytes at %s: ", size, place(buffers, begin).c_str()) + error + collides,
           caller);
  }
}

void report(const std::string& message, const void* caller) {
  const auto offset = static_cast<const char*>(caller) - __ehdr_start;
  fail(name_of(*running) + ": " + message + text(" [code +0x%zx]", static_cast<size_t>(offset)));
}

void atomic_access(void* address, size_t bytes) {
  check_access(address, bytes, Access::kAtomic, __builtin_return_address(0));
}

bool in_kernel() { return running; }
void* dynamic_shared() { return dynamic_memory.get(); }
unsigned lane() { return number(*running) % 32; }

int block_barrier(Vote vote, int predicate, Site site) {
  running->vote = vote;
  running->predicate = predicate != 0;
  wait(State::kAtBarrier, site);
  return running->predicate;
}

const uint64_t* meet_warp(unsigned mask, uint64_t value, bool orders_memory, Site site) {
  if (!(mask >> lane() & 1)) {
    fail(name_of(*running) + " is not in the mask " + text("0x%08x", mask) + " it gives to " +
         name_of(site));
  }
  running->mask = mask;
  running->value = value;
  running->orders_memory = orders_memory;
  wait(State::kAtWarp, site);
  return running->values;
}

void check_source_lane(unsigned mask, unsigned source, Site site) {
  if (source > 31 || !(mask >> source & 1)) {
    fail(name_of(*running) +
         text(" reads lane %u, which is not in the mask 0x%08x, in ", source, mask) +
         name_of(site));
  }
}

cudaError_t run(dim3 grid, dim3 block, size_t shared_bytes, void (*body)(const void*),
                const void* arguments, size_t argument_bytes) {
  if (!valid_launch(grid, block, shared_bytes)) {
    return cudaErrorInvalidConfiguration;
  }
  if (!first_error.empty()) {
    return cudaErrorLaunchFailure;
  }
  gridDim = grid;
  blockDim = block;
  thread_count = block.x * block.y * block.z;
  kernel_body = body;
  kernel_arguments = arguments;
  kernel_argument_bytes = argument_bytes;
  make_stacks();
  dynamic_memory.reset(new unsigned char[shared_bytes]);
  buffers.emplace_back("dynamic shared memory", dynamic_memory.get(), shared_bytes, true, true);
  for (Buffer& buffer : buffers) {
    buffer.settle();
  }
  for (Thread& thread : threads) {
    thread.started = false;
  }
  std::vector<uint64_t> blocks(uint64_t{grid.x} * grid.y * grid.z);
  std::iota(blocks.begin(), blocks.end(), 0);
  std::shuffle(blocks.begin(), blocks.end(), order);
  for (size_t i = 0; i < blocks.size() && first_error.empty(); ++i) {
    run_block(blocks[i]);
  }
  buffers.pop_back();
  return first_error.empty() ? cudaSuccess : cudaErrorLaunchFailure;
}

}  // namespace cuda_on_cpu

// What __init__.py calls.
extern "C" {

void cuda_on_cpu_begin(uint64_t seed) {
  using namespace cuda_on_cpu;
  order.seed(seed);
  buffers.clear();
  first_error.clear();
  accesses = 0;
}

void cuda_on_cpu_buffer(const char* name, const void* address, uint64_t size, int writable,
                        int written) {
  using namespace cuda_on_cpu;
  buffers.emplace_back(name, address, size, writable != 0, false);
  buffers.back().forget(written != 0);
}

// A static shared variable, by its distance from `shared_anchor`.
void cuda_on_cpu_shared(const char* name, int64_t distance, uint64_t size) {
  using namespace cuda_on_cpu;
  buffers.emplace_back(name, &shared_anchor + distance, size, true, true);
}

const char* cuda_on_cpu_error() { return cuda_on_cpu::first_error.c_str(); }

uint64_t cuda_on_cpu_unwritten(uint64_t buffer) {
  return cuda_on_cpu::buffers.at(buffer).unwritten();
}

}  // extern "C"
