/* What Cython cannot say: prefetch, what the compiler targets, what the CPU has.
 *
 * No algorithms live here. Everything is a macro or a static inline function, so
 * that each level of `_core` compiles its own copy under its own flags.
 */
#ifndef EMBAG_PLATFORM_H
#define EMBAG_PLATFORM_H

#include <stddef.h>
#include <stdint.h>
#if defined(_MSC_VER) && !defined(__clang__)
#include <intrin.h>
#endif

/* Into L2, not L1: a row is wanted some 20 rows later, when many L1 lines have
 * passed, and L1 has too few miss buffers to hold that many requests. Measured in
 * docs/design.md: the hint alone halves the time of a gather from memory. */
static inline void embag_prefetch(size_t address) {
#if defined(__GNUC__) || defined(__clang__)
    __builtin_prefetch((const void *)address, 0, 2);
#elif defined(_M_X64)
    _mm_prefetch((const char *)address, _MM_HINT_T1);
#elif defined(_M_ARM64)
    __prefetch((const void *)address);
#endif
}

/* For a line that is about to be read and written: as near as it can be had, and owned. */
static inline void embag_prefetch_to_write(size_t address) {
#if defined(__GNUC__) || defined(__clang__)
    __builtin_prefetch((const void *)address, 1, 3);
#elif defined(_M_X64)
    _m_prefetchw((const void *)address);
#elif defined(_M_ARM64)
    __prefetch((const void *)address);
#endif
}

/* Indices and offsets belong to the caller, whose other threads may write to them. Each is
 * read once, into a register, and that value is checked and used: `volatile` keeps the
 * compiler from reading it again in between. */
static inline int32_t embag_read_int32(const int32_t *source) {
    return *(const volatile int32_t *)source;
}
static inline int64_t embag_read_int64(const int64_t *source) {
    return *(const volatile int64_t *)source;
}

/* The widest block of columns whose sums stay in vector registers, in bytes:
 * 16 of 32 registers of 64 bytes, 16 of 32 bytes, 16 of 16 bytes. */
#if defined(__AVX512F__)
#define EMBAG_BLOCK_BYTES 1024
#elif defined(__AVX2__) || defined(__aarch64__)
#define EMBAG_BLOCK_BYTES 512
#else
#define EMBAG_BLOCK_BYTES 256
#endif

#ifdef _OPENMP
#define EMBAG_OPENMP _OPENMP
#else
#define EMBAG_OPENMP 0
#endif

#if defined(__clang__)
#define EMBAG_COMPILER "clang " __clang_version__
#elif defined(__GNUC__)
#define EMBAG_COMPILER "gcc " __VERSION__
#elif defined(_MSC_VER)
#define EMBAG_STRINGIFY_(x) #x
#define EMBAG_STRINGIFY(x) EMBAG_STRINGIFY_(x)
#define EMBAG_COMPILER "MSVC " EMBAG_STRINGIFY(_MSC_FULL_VER)
#else
#define EMBAG_COMPILER "unknown"
#endif

/* The highest x86-64 psABI level that this CPU *and* its operating system run:
 * 4, 3, or 1 for the baseline; 0 on other processors. A compiler that does not know the
 * levels by name is asked for the features that tell them apart on real processors. */
static inline int embag_cpu_level(void) {
#if (defined(__x86_64__) || defined(__i386__)) && (defined(__GNUC__) || defined(__clang__))
    __builtin_cpu_init();
#if defined(__GNUC__) && __GNUC__ >= 12 && !defined(__clang__)
    if (__builtin_cpu_supports("x86-64-v4"))
        return 4;
    return __builtin_cpu_supports("x86-64-v3") ? 3 : 1;
#else
    if (!(__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
          __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2")))
        return 1;
    if (!(__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
          __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
          __builtin_cpu_supports("avx512vl")))
        return 3;
    return 4;
#endif
#elif defined(_M_X64)
    /* PF_AVX2_INSTRUCTIONS_AVAILABLE, PF_AVX512F_INSTRUCTIONS_AVAILABLE */
    extern __declspec(dllimport) int __stdcall IsProcessorFeaturePresent(unsigned long);
    if (!IsProcessorFeaturePresent(40))
        return 1;
    return IsProcessorFeaturePresent(41) ? 4 : 3;
#else
    return 0;
#endif
}

#endif
