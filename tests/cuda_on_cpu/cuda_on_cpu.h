#pragma once

// CUDA C++ for a compiler that knows none: what device code may use, run by model.cpp.
//
// Every load and store of the code that includes this is reported to model.cpp, because it is
// compiled with the hooks of -fsanitize=thread (__tsan_read4, ...), which model.cpp defines itself;
// likewise the hooks of -fsanitize=bounds,alignment,... . No sanitizer runtime takes part.

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <driver_types.h>
#include <vector_functions.h>
#include <vector_types.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <tuple>
#include <type_traits>

// thread_local: block scope needs no `static`, and the linker lays exactly these variables, and no
// others, in a segment that model.cpp finds. All threads of the model share one thread of the CPU.
#undef __shared__
#define __shared__ thread_local
#undef __launch_bounds__
#define __launch_bounds__(...)
#undef __grid_constant__
#define __grid_constant__

extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;
constexpr int warpSize = 32;

namespace cuda_on_cpu {

// Where device code called; the default arguments of the intrinsics fill it in.
struct Site {
  const char* name;
  const char* file;
  int line;
};

cudaError_t run(dim3 grid, dim3 block, size_t shared_bytes, void (*body)(const void*),
                const void* arguments, size_t argument_bytes);
void* dynamic_shared();
unsigned lane();

enum class Vote { kNone, kCount, kAnd, kOr };
int block_barrier(Vote vote, int predicate, Site site);
// Waits for all lanes of `mask` and returns what each of the 32 gave; `orders_memory`: __syncwarp.
const uint64_t* meet_warp(unsigned mask, uint64_t value, bool orders_memory, Site site);
void check_source_lane(unsigned mask, unsigned source, Site site);
void atomic_access(void* address, size_t bytes);

template <typename... Parameters>
cudaError_t launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes,
                   std::type_identity_t<Parameters>... arguments) {
  using Closure = std::tuple<void (*)(Parameters...), Parameters...>;
  const Closure closure(kernel, arguments...);
  const auto body = [](const void* given) {
    std::apply([](auto function, const auto&... values) { function(values...); },
               *static_cast<const Closure*>(given));
  };
  return run(grid, block, shared_bytes, body, &closure, sizeof(closure));
}

template <typename To, typename From>
To bits(From from) {
  static_assert(sizeof(To) <= 8 && sizeof(From) <= 8);
  unsigned char bytes[8] = {};
  std::memcpy(bytes, &from, sizeof(from));
  To to;
  std::memcpy(&to, bytes, sizeof(to));
  return to;
}

// `source` is this lane itself where the one asked for lies outside the segment of `width` lanes.
template <typename T>
T shuffle(unsigned mask, T value, unsigned source, Site site) {
  const uint64_t* values = meet_warp(mask, bits<uint64_t>(value), false, site);
  check_source_lane(mask, source, site);
  return bits<T>(values[source]);
}

inline unsigned vote(unsigned mask, bool predicate, Site site) {
  const uint64_t* values = meet_warp(mask, predicate, false, site);
  unsigned votes = 0;
  for (unsigned i = 0; i < 32; ++i) {
    votes |= (mask >> i & 1 && values[i]) ? 1u << i : 0;
  }
  return votes;
}

// Not instrumented: atomic_access reports what it does.
template <typename T, typename Update>
__attribute__((no_sanitize("thread"))) T atomic(T* address, Update update) {
  atomic_access(address, sizeof(T));
  const T before = *address;
  *address = update(before);
  return before;
}

}  // namespace cuda_on_cpu

#define CUDA_ON_CPU_CALLER const char *file = __builtin_FILE(), int line = __builtin_LINE()
#define CUDA_ON_CPU_SITE \
  cuda_on_cpu::Site { __func__, file, line }

inline void __syncthreads(CUDA_ON_CPU_CALLER) {
  cuda_on_cpu::block_barrier(cuda_on_cpu::Vote::kNone, 0, CUDA_ON_CPU_SITE);
}
inline int __syncthreads_count(int predicate, CUDA_ON_CPU_CALLER) {
  return cuda_on_cpu::block_barrier(cuda_on_cpu::Vote::kCount, predicate, CUDA_ON_CPU_SITE);
}
inline int __syncthreads_and(int predicate, CUDA_ON_CPU_CALLER) {
  return cuda_on_cpu::block_barrier(cuda_on_cpu::Vote::kAnd, predicate, CUDA_ON_CPU_SITE);
}
inline int __syncthreads_or(int predicate, CUDA_ON_CPU_CALLER) {
  return cuda_on_cpu::block_barrier(cuda_on_cpu::Vote::kOr, predicate, CUDA_ON_CPU_SITE);
}
inline void __syncwarp(unsigned mask = 0xffffffff, CUDA_ON_CPU_CALLER) {
  cuda_on_cpu::meet_warp(mask, 0, true, CUDA_ON_CPU_SITE);
}
// Orders the writes of one thread only; here they are ordered anyhow.
inline void __threadfence() {}
inline void __threadfence_block() {}

inline unsigned __ballot_sync(unsigned mask, int predicate, CUDA_ON_CPU_CALLER) {
  return cuda_on_cpu::vote(mask, predicate, CUDA_ON_CPU_SITE);
}
inline int __any_sync(unsigned mask, int predicate, CUDA_ON_CPU_CALLER) {
  return cuda_on_cpu::vote(mask, predicate, CUDA_ON_CPU_SITE) != 0;
}
inline int __all_sync(unsigned mask, int predicate, CUDA_ON_CPU_CALLER) {
  return cuda_on_cpu::vote(mask, predicate, CUDA_ON_CPU_SITE) == mask;
}
// The least that the hardware may answer.
inline unsigned __activemask() { return 1u << cuda_on_cpu::lane(); }

template <typename T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, CUDA_ON_CPU_CALLER) {
  const unsigned first = cuda_on_cpu::lane() & -width;
  return cuda_on_cpu::shuffle(mask, value, first + (source & (width - 1)), CUDA_ON_CPU_SITE);
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, CUDA_ON_CPU_CALLER) {
  const unsigned lane = cuda_on_cpu::lane();
  const bool inside = (lane & (width - 1)) >= delta;
  return cuda_on_cpu::shuffle(mask, value, inside ? lane - delta : lane, CUDA_ON_CPU_SITE);
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, CUDA_ON_CPU_CALLER) {
  const unsigned lane = cuda_on_cpu::lane();
  const bool inside = (lane & (width - 1)) + delta < static_cast<unsigned>(width);
  return cuda_on_cpu::shuffle(mask, value, inside ? lane + delta : lane, CUDA_ON_CPU_SITE);
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32, CUDA_ON_CPU_CALLER) {
  const unsigned lane = cuda_on_cpu::lane();
  // Groups of `width` lanes may look into earlier groups, not into later ones.
  const bool inside = (lane ^ lanes) < (lane & -width) + width;
  return cuda_on_cpu::shuffle(mask, value, inside ? lane ^ lanes : lane, CUDA_ON_CPU_SITE);
}

template <typename T>
T atomicAdd(T* address, std::type_identity_t<T> value) {
  return cuda_on_cpu::atomic(address, [=](T before) { return static_cast<T>(before + value); });
}
template <typename T>
T atomicMax(T* address, std::type_identity_t<T> value) {
  return cuda_on_cpu::atomic(address, [=](T before) { return before < value ? value : before; });
}
template <typename T>
T atomicMin(T* address, std::type_identity_t<T> value) {
  return cuda_on_cpu::atomic(address, [=](T before) { return value < before ? value : before; });
}
template <typename T>
T atomicOr(T* address, std::type_identity_t<T> value) {
  return cuda_on_cpu::atomic(address, [=](T before) { return before | value; });
}
template <typename T>
T atomicAnd(T* address, std::type_identity_t<T> value) {
  return cuda_on_cpu::atomic(address, [=](T before) { return before & value; });
}
template <typename T>
T atomicExch(T* address, std::type_identity_t<T> value) {
  return cuda_on_cpu::atomic(address, [=](T) { return value; });
}
template <typename T>
T atomicCAS(T* address, std::type_identity_t<T> expected, std::type_identity_t<T> value) {
  return cuda_on_cpu::atomic(address, [=](T old) { return old == expected ? value : old; });
}

template <typename T>
T __ldg(const T* address) {
  return *address;
}
template <typename T>
T __ldcs(const T* address) {
  return *address;
}
template <typename T>
T __ldcg(const T* address) {
  return *address;
}
template <typename T>
void __stcs(T* address, std::type_identity_t<T> value) {
  *address = value;
}
template <typename T>
void __stcg(T* address, std::type_identity_t<T> value) {
  *address = value;
}

template <typename A, typename B>
  requires(std::is_arithmetic_v<A> && std::is_arithmetic_v<B>)
std::common_type_t<A, B> min(A a, B b) {
  const std::common_type_t<A, B> left = a, right = b;
  return right < left ? right : left;
}
template <typename A, typename B>
  requires(std::is_arithmetic_v<A> && std::is_arithmetic_v<B>)
std::common_type_t<A, B> max(A a, B b) {
  const std::common_type_t<A, B> left = a, right = b;
  return left < right ? right : left;
}

// As macros, because some C libraries declare functions of the first two names.
#define rsqrtf(x) (1.0f / std::sqrt(static_cast<float>(x)))
#define rsqrt(x) (1.0 / std::sqrt(static_cast<double>(x)))
// Never made one with a sum.
inline float __fmul_rn(float x, float y) { return x * y; }
inline float __expf(float x) { return std::exp(x); }
inline float __logf(float x) { return std::log(x); }
inline float __fdividef(float x, float y) { return x / y; }
inline float __saturatef(float x) { return x > 0 ? (x < 1 ? x : 1.0f) : 0.0f; }
inline int __float2int_rn(float x) { return static_cast<int>(std::nearbyint(x)); }
inline int __float2int_rz(float x) { return static_cast<int>(x); }
inline int __float2int_rd(float x) { return static_cast<int>(std::floor(x)); }
inline int __float2int_ru(float x) { return static_cast<int>(std::ceil(x)); }
inline float __int2float_rn(int x) { return static_cast<float>(x); }
inline int __float_as_int(float x) { return cuda_on_cpu::bits<int>(x); }
inline unsigned __float_as_uint(float x) { return cuda_on_cpu::bits<unsigned>(x); }
inline float __int_as_float(int x) { return cuda_on_cpu::bits<float>(x); }
inline float __uint_as_float(unsigned x) { return cuda_on_cpu::bits<float>(x); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }
inline int __clz(int x) { return x ? __builtin_clz(x) : 32; }
inline int __clzll(long long x) { return x ? __builtin_clzll(x) : 64; }
