#pragma once

// One binary for every x86-64: the compiler makes a version of the function for each of these
// instruction sets, and the loader picks the best one that the processor has.
#if defined(__x86_64__) && defined(__GLIBC__)
#define PIX2PIXHD_FAST_SIMD __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define PIX2PIXHD_FAST_SIMD
#endif
