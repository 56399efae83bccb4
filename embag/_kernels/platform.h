/* What Cython cannot say: prefetch, narrow floats, what the compiler targets, what the CPU has.
 *
 * No algorithms live here. Everything is a macro or a static inline function, so
 * that each level of `_core` compiles its own copy under its own flags.
 */
#ifndef EMBAG_PLATFORM_H
#define EMBAG_PLATFORM_H

#include <fenv.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <time.h>
#ifdef _OPENMP
#include <omp.h>
#endif
#if defined(__linux__)
#include <sys/mman.h>
#endif
#if defined(_WIN32)
#include <windows.h>
#else
#include <unistd.h>
#endif
#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#include <cpuid.h>
#endif
#if defined(__x86_64__) || defined(_M_X64)
#include <xmmintrin.h>
#endif
/* MSVC has no macro for it: /arch:AVX2 allows it. */
#if defined(__F16C__) || (defined(_MSC_VER) && defined(__AVX2__))
#define EMBAG_F16C
#endif
#if defined(EMBAG_F16C) || defined(__AVX2__)
#include <immintrin.h>
#endif
/* Every 64-bit Arm processor has it, and converts halves. Big-endian ones order the lanes
 * differently. */
#if defined(__aarch64__) && defined(__ARM_NEON) && !defined(__AARCH64EB__)
#define EMBAG_NEON
/* In the kernels' loops none of vld1, vst1 and vcvt: gcc 12 believes that vst1 writes any memory
 * and that the others read any, and keeps the sums of a loop with them in memory. */
#include <arm_neon.h>
#endif
#if defined(_MSC_VER) && !defined(__clang__)
#include <intrin.h>
/* /fp:precise fused multiplications with additions before Visual Studio 2022. Every level
 * computes the same bits. */
#pragma fp_contract(off)
#endif

/* Into L2: L1 has few miss buffers, and a row that is needed 64 rows later may have left it. */
static inline void embag_prefetch(size_t address) {
#if defined(__GNUC__) || defined(__clang__)
    __builtin_prefetch((const void *)address, 0, 2);
#elif defined(_M_X64)
    _mm_prefetch((const char *)address, _MM_HINT_T1);
#elif defined(_M_ARM64)
    __prefetch((const void *)address);
#endif
}

/* Into L1: for strategies that prefetch few rows ahead. */
static inline void embag_prefetch_near(size_t address) {
#if defined(__GNUC__) || defined(__clang__)
    __builtin_prefetch((const void *)address, 0, 3);
#elif defined(_M_X64)
    _mm_prefetch((const char *)address, _MM_HINT_T0);
#elif defined(_M_ARM64)
    __prefetch((const void *)address);
#endif
}

/* The pages of some bytes, from a file that is mapped there, without waiting for them. Only
 * advice: it changes no memory, and whether it fails makes no difference. */
static inline void embag_prefetch_pages(size_t address, size_t n_bytes) {
#if defined(__linux__)
    const size_t start = address & ~((size_t)sysconf(_SC_PAGESIZE) - 1);
    (void)madvise((void *)start, address + n_bytes - start, MADV_WILLNEED);
#else
    (void)address;
    (void)n_bytes;
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

/* Arm processors may drop a prefetch whose page is not in the TLB. A load of an address that
 * may be read has its page translated. */
#if defined(__aarch64__) || defined(_M_ARM64)
#define EMBAG_TOUCHES 1
#else
#define EMBAG_TOUCHES 0
#endif
static inline void embag_touch(const char *address) {
    (void)*(const volatile char *)address;
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

/* The number of the process: another one after a fork. */
static inline int64_t embag_process(void) {
#if defined(_WIN32)
    return 0;
#else
    return (int64_t)getpid();
#endif
}

/* Nanoseconds of a clock that is read in some 20. */
static inline int64_t embag_now(void) {
#if defined(_WIN32)
    LARGE_INTEGER ticks, a_second;
    QueryPerformanceCounter(&ticks);
    QueryPerformanceFrequency(&a_second);
    return (int64_t)((double)ticks.QuadPart * 1e9 / (double)a_second.QuadPart);
#else
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
#endif
}

/* The family of an x86-64 processor of AMD's (25: Zen 3 and 4, 26: Zen 5); 0 for others. */
static inline int embag_cpu_family(void) {
#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
    unsigned int a, b, c, d;
    if (!__get_cpuid(0, &a, &b, &c, &d) || b != 0x68747541) /* "Auth" of AuthenticAMD */
        return 0;
    __get_cpuid(1, &a, &b, &c, &d);
    return (int)((a >> 8 & 15) + (a >> 20 & 255));
#else
    return 0;
#endif
}

/* What the calling thread's parallel regions took, and what they would take on one thread. */
#if defined(_MSC_VER)
static __declspec(thread) double embag_region_ns[2];
#else
static __thread double embag_region_ns[2];
#endif

static inline void embag_add_region(double took, double alone) {
    embag_region_ns[0] += took;
    embag_region_ns[1] += alone;
}

static inline void embag_take_region(double *took, double *alone) {
    *took = embag_region_ns[0];
    *alone = embag_region_ns[1];
    embag_region_ns[0] = embag_region_ns[1] = 0;
}

/* Threads count together. */
static inline void embag_count(int64_t *total, int64_t n) {
#if defined(__GNUC__) || defined(__clang__)
    __atomic_fetch_add(total, n, __ATOMIC_RELAXED);
#else
    _InterlockedExchangeAdd64((volatile long long *)total, n);
#endif
}

/* A kernel computes under the default floating-point settings: round to nearest, keep
 * subnormals, trap nothing. Others may be in force: torch.set_flush_denormal and libraries
 * built with -ffast-math flush subnormals to zero, fesetround changes the rounding. Settings
 * belong to a thread, and OpenMP's workers have their own. So each task begins with
 * embag_use_default_floats() and ends with embag_restore_floats() of its result. */
#if defined(__x86_64__) || defined(_M_X64)
#define EMBAG_DEFAULT_FLOATS 0x1f80u
#define EMBAG_FLOAT_FLAGS 0x3fu     /* exceptions seen: no setting */
static inline uint64_t embag_read_floats(void) { return _mm_getcsr(); }
static inline void embag_write_floats(uint64_t floats) { _mm_setcsr((unsigned int)floats); }
#elif defined(__aarch64__) && (defined(__GNUC__) || defined(__clang__))
#define EMBAG_DEFAULT_FLOATS 0
#define EMBAG_FLOAT_FLAGS 0
static inline uint64_t embag_read_floats(void) {
    uint64_t floats;
    __asm__ volatile("mrs %0, fpcr" : "=r"(floats));
    return floats;
}
static inline void embag_write_floats(uint64_t floats) {
    __asm__ volatile("msr fpcr, %0" : : "r"(floats));
}
#else /* the rounding alone: few other processors flush subnormals */
#define EMBAG_DEFAULT_FLOATS FE_TONEAREST
#define EMBAG_FLOAT_FLAGS 0
static inline uint64_t embag_read_floats(void) { return (uint64_t)fegetround(); }
static inline void embag_write_floats(uint64_t floats) { fesetround((int)floats); }
#endif

/* Loads and stores stay on their side of it, and so does the arithmetic between them. */
static inline void embag_keep_order(void) {
#if defined(__GNUC__) || defined(__clang__)
    __asm__ volatile("" : : : "memory");
#else
    _ReadWriteBarrier();
#endif
}
/* Writing the register takes 24 ns, reading it 8 (Zen 4): it is written only if need be. */
static inline uint64_t embag_use_default_floats(void) {
    const uint64_t given = embag_read_floats();
    if ((given & ~(uint64_t)EMBAG_FLOAT_FLAGS) != EMBAG_DEFAULT_FLOATS)
        embag_write_floats(EMBAG_DEFAULT_FLOATS);
    embag_keep_order();
    return given;
}
static inline void embag_restore_floats(uint64_t given) {
    embag_keep_order();
    if ((given & ~(uint64_t)EMBAG_FLOAT_FLAGS) != EMBAG_DEFAULT_FLOATS)
        embag_write_floats(given);
}

/* Scales and biases stand between bytes: read and written wherever they are. */
static inline float embag_read_float(const char *source) {
    float value;
    memcpy(&value, source, sizeof value);
    return value;
}
static inline uint16_t embag_read_uint16(const char *source) {
    uint16_t value;
    memcpy(&value, source, sizeof value);
    return value;
}

static inline void embag_write_float(char *to, float value) {
    memcpy(to, &value, sizeof value);
}
static inline void embag_write_uint16(char *to, uint16_t value) {
    memcpy(to, &value, sizeof value);
}

/* The first of some bytes has the lowest bits of the result. */
static inline uint32_t embag_read_2_codes(const uint8_t *source) {
    uint16_t codes;
    memcpy(&codes, source, sizeof codes);
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    codes = __builtin_bswap16(codes);
#endif
    return codes;
}
static inline uint32_t embag_read_4_codes(const uint8_t *source) {
    uint32_t codes;
    memcpy(&codes, source, sizeof codes);
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    codes = __builtin_bswap32(codes);
#endif
    return codes;
}

static inline float embag_float_of_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}
static inline uint32_t embag_bits_of_float(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

/* IEEE binary16 ("half") and bfloat16 to float, exactly. No branches, so that loops over
 * these vectorise, and no float subnormals on the way, which a process may have switched
 * off. */
static inline float embag_half_to_float(uint16_t half) {
#if defined(EMBAG_F16C)
    return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(half)));
#elif defined(EMBAG_NEON)
    __fp16 value;
    memcpy(&value, &half, sizeof value);
    return (float)value;
#else
    uint32_t magnitude = (uint32_t)(half & 0x7fff) << 13;
    uint32_t exponent = magnitude & 0x0f800000;
    uint32_t bits = magnitude + (112u << 23);            /* 127 - 15: the other bias */
    uint32_t special = bits + (112u << 23);              /* infinite, or NaN */
    float subnormal = embag_float_of_bits(bits + (1u << 23)) - embag_float_of_bits(113u << 23);
    bits = exponent == 0x0f800000 ? special : bits;
    bits = exponent == 0 ? embag_bits_of_float(subnormal) : bits;
    return embag_float_of_bits(bits | (uint32_t)(half & 0x8000) << 16);
#endif
}
static inline float embag_bfloat_to_float(uint16_t bfloat) {
    return embag_float_of_bits((uint32_t)bfloat << 16);
}

/* Float to half and bfloat16, to the nearest, ties to even. */
static inline uint16_t embag_float_to_half(float value) {
    uint32_t bits = embag_bits_of_float(value);
    uint32_t magnitude = bits & 0x7fffffff;
    uint32_t odd = (magnitude >> 13) & 1;
    uint32_t normal = (magnitude - (112u << 23) + 0xfff + odd) >> 13;
    /* Adding 0.5 leaves a subnormal half's bits, rounded, in the last of the sum's. */
    uint32_t subnormal = embag_bits_of_float(embag_float_of_bits(magnitude) + 0.5f) - (126u << 23);
    uint32_t half = magnitude < (113u << 23) ? subnormal : normal;
    half = magnitude >= (143u << 23) ? 0x7c00 : half;    /* 65536 and above */
    half = magnitude > 0x7f800000 ? 0x7e00 : half;       /* NaN */
    return (uint16_t)(half | (bits & 0x80000000) >> 16);
}
static inline uint16_t embag_float_to_bfloat(float value) {
    uint32_t bits = embag_bits_of_float(value);
    uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    uint32_t quiet = bits >> 16 | 0x40;
    return (uint16_t)((bits & 0x7fffffff) > 0x7f800000 ? quiet : rounded);
}

/* n halves to floats: by the processor's own instruction where the level has it. */
static inline void embag_halves_to_floats(const ptrdiff_t n, const char *from, float *to) {
    ptrdiff_t done = 0;
#if defined(__AVX512F__)
    for (ptrdiff_t d = 0; d < n - n % 16; d += 16) {
        __m256i halves = _mm256_loadu_si256((const __m256i *)(from + 2 * d));
        _mm512_storeu_ps(to + d, _mm512_cvtph_ps(halves));
    }
    done = n - n % 16;
#endif
#if defined(EMBAG_F16C)
    for (ptrdiff_t d = done; d < n - n % 8; d += 8) {
        __m128i halves = _mm_loadu_si128((const __m128i *)(from + 2 * d));
        _mm256_storeu_ps(to + d, _mm256_cvtph_ps(halves));
    }
    done = n - n % 8;
#endif
#if defined(EMBAG_NEON)
    for (ptrdiff_t d = 0; d < n - n % 4; d += 4) {
        float16x4_t halves;
        float32x4_t floats;
        memcpy(&halves, from + 2 * d, sizeof halves);
        __asm__("fcvtl %0.4s, %1.4h" : "=w"(floats) : "w"(halves));
        memcpy(to + d, &floats, sizeof floats);
    }
    done = n - n % 4;
#endif
    for (ptrdiff_t d = done; d < n; d++)
        to[d] = embag_half_to_float(embag_read_uint16(from + 2 * d));
}

/* n floats to halves, to the nearest, ties to even. */
static inline void embag_floats_to_halves(const ptrdiff_t n, const float *from, uint16_t *to) {
    ptrdiff_t done = 0;
#if defined(EMBAG_NEON)
    for (ptrdiff_t d = 0; d < n - n % 4; d += 4) {
        float32x4_t floats;
        memcpy(&floats, from + d, sizeof floats);
        uint16x4_t halves = vreinterpret_u16_f16(vcvt_f16_f32(floats));
        halves &= vmovn_u32(vceqq_f32(floats, floats)) | 0xfe00; /* NaN: no payload, as above */
        memcpy(to + d, &halves, sizeof halves);
    }
    done = n - n % 4;
#endif
    for (ptrdiff_t d = done; d < n; d++)
        to[d] = embag_float_to_half(from[d]);
}

#if defined(EMBAG_NEON)
static inline void embag_8_bytes_to_floats(uint8x8_t bytes, float *to) {
    uint16x8_t wide = vmovl_u8(bytes);
    float32x4_t low = __builtin_convertvector(vmovl_u16(vget_low_u16(wide)), float32x4_t);
    float32x4_t high = __builtin_convertvector(vmovl_high_u16(wide), float32x4_t);
    memcpy(to, &low, sizeof low);
    memcpy(to + 4, &high, sizeof high);
}
#endif

/* n bytes to integers of `bits` bits as floats, in planes: the first of each byte, then the
 * second ones ... Written out where there are instructions for it, since gcc 12 widens
 * bytes in steps, with a shuffle each. */
static inline void embag_bytes_to_floats(
    const int bits, const ptrdiff_t n, const char *from, float *to) {
    const int top = 8 / bits - 1;     /* needs no mask */
    ptrdiff_t done = 0;
#if defined(__AVX512F__)
    const __m512i mask = _mm512_set1_epi32((1 << bits) - 1);
    for (ptrdiff_t i = 0; i < n - n % 16; i += 16) {
        __m512i x = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(from + i)));
        for (int p = 0; p <= top; p++) {
            __m512i q = _mm512_srli_epi32(x, p * bits);
            q = p == top ? q : _mm512_and_si512(q, mask);
            _mm512_storeu_ps(to + p * n + i, _mm512_cvtepi32_ps(q));
        }
    }
    done = n - n % 16;
#endif
#if defined(__AVX2__)
    const __m256i half_mask = _mm256_set1_epi32((1 << bits) - 1);
    for (ptrdiff_t i = done; i < n - n % 8; i += 8) {
        __m256i x = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(from + i)));
        for (int p = 0; p <= top; p++) {
            __m256i q = _mm256_srli_epi32(x, p * bits);
            q = p == top ? q : _mm256_and_si256(q, half_mask);
            _mm256_storeu_ps(to + p * n + i, _mm256_cvtepi32_ps(q));
        }
    }
    done = n - n % 8;
#endif
#if defined(EMBAG_NEON)
    for (ptrdiff_t i = 0; i < n - n % 16; i += 16) {
        uint8x16_t x;
        memcpy(&x, from + i, sizeof x);
        for (int p = 0; p <= top; p++) {
            uint8x16_t q = x >> p * bits;
            q = p == top ? q : q & (uint8_t)((1 << bits) - 1);
            embag_8_bytes_to_floats(vget_low_u8(q), to + p * n + i);
            embag_8_bytes_to_floats(vget_high_u8(q), to + p * n + i + 8);
        }
    }
    done = n - n % 16;
    for (ptrdiff_t i = done; i < n - n % 8; i += 8) {
        uint8x8_t x;
        memcpy(&x, from + i, sizeof x);
        for (int p = 0; p <= top; p++) {
            uint8x8_t q = x >> p * bits;
            q = p == top ? q : q & (uint8_t)((1 << bits) - 1);
            embag_8_bytes_to_floats(q, to + p * n + i);
        }
    }
    done = n - n % 8;
#endif
    for (int p = 0; p <= top; p++)
        for (ptrdiff_t i = done; i < n; i++)
            to[p * n + i] = (float)((uint8_t)from[i] >> p * bits & ((1 << bits) - 1));
}

/* n signed bytes to floats. */
static inline void embag_int8s_to_floats(const ptrdiff_t n, const char *from, float *to) {
    ptrdiff_t done = 0;
#if defined(__AVX512F__)
    for (ptrdiff_t i = 0; i < n - n % 16; i += 16) {
        __m512i x = _mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)(from + i)));
        _mm512_storeu_ps(to + i, _mm512_cvtepi32_ps(x));
    }
    done = n - n % 16;
#endif
#if defined(__AVX2__)
    for (ptrdiff_t i = done; i < n - n % 8; i += 8) {
        __m256i x = _mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)(from + i)));
        _mm256_storeu_ps(to + i, _mm256_cvtepi32_ps(x));
    }
    done = n - n % 8;
#endif
    for (ptrdiff_t i = done; i < n; i++)
        to[i] = (float)(signed char)from[i];
}

/* Floats of 8 bits to floats, exactly. One with 5 bits of exponent (e5m2) is the upper byte of a
 * half. One with 4 (e4m3fn) has the bits of a half that is 256 times as small, except for NaN:
 * it has one for each sign, and no infinity. */
static inline float embag_e5m2_to_float(uint8_t bits) {
    return embag_half_to_float((uint16_t)(bits << 8));
}
static inline float embag_e4m3_to_float(uint8_t bits) {
    const uint16_t half = (uint16_t)((bits & 0x80) << 8 | (bits & 0x7f) << 7);
    const uint32_t value = embag_bits_of_float(embag_half_to_float(half) * 256.0f);
    return embag_float_of_bits((bits & 0x7f) == 0x7f ? value | 0x7fc00000 : value);
}
static inline void embag_e5m2s_to_floats(const ptrdiff_t n, const char *from, float *to) {
    ptrdiff_t done = 0;
#if defined(__AVX512F__)
    for (ptrdiff_t i = 0; i < n - n % 16; i += 16) {
        __m256i x = _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *)(from + i)));
        _mm512_storeu_ps(to + i, _mm512_cvtph_ps(_mm256_slli_epi16(x, 8)));
    }
    done = n - n % 16;
#endif
#if defined(__AVX2__) && defined(EMBAG_F16C)
    for (ptrdiff_t i = done; i < n - n % 8; i += 8) {
        __m128i x = _mm_cvtepu8_epi16(_mm_loadl_epi64((const __m128i *)(from + i)));
        _mm256_storeu_ps(to + i, _mm256_cvtph_ps(_mm_slli_epi16(x, 8)));
    }
    done = n - n % 8;
#endif
    for (ptrdiff_t i = done; i < n; i++)
        to[i] = embag_e5m2_to_float((uint8_t)from[i]);
}
static inline void embag_e4m3s_to_floats(const ptrdiff_t n, const char *from, float *to) {
    ptrdiff_t done = 0;
#if defined(__AVX512BW__) && defined(__AVX512VL__)
    for (ptrdiff_t i = 0; i < n - n % 16; i += 16) {
        __m256i x = _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *)(from + i)));
        __m256i half = _mm256_slli_epi16(_mm256_and_si256(x, _mm256_set1_epi16(0x7f)), 7);
        __mmask16 nan = _mm256_cmpeq_epi16_mask(half, _mm256_set1_epi16(0x7f << 7));
        half = _mm256_mask_mov_epi16(half, nan, _mm256_set1_epi16(0x7e00));
        __m256i sign = _mm256_and_si256(_mm256_slli_epi16(x, 8), _mm256_set1_epi16(-0x8000));
        __m512 value = _mm512_cvtph_ps(_mm256_or_si256(half, sign));
        _mm512_storeu_ps(to + i, _mm512_mul_ps(value, _mm512_set1_ps(256.0f)));
    }
    done = n - n % 16;
#endif
#if defined(__AVX2__) && defined(EMBAG_F16C)
    for (ptrdiff_t i = done; i < n - n % 8; i += 8) {
        __m128i x = _mm_cvtepu8_epi16(_mm_loadl_epi64((const __m128i *)(from + i)));
        __m128i magnitude = _mm_and_si128(x, _mm_set1_epi16(0x7f));
        __m128i half = _mm_or_si128(
            _mm_slli_epi16(_mm_xor_si128(x, magnitude), 8), _mm_slli_epi16(magnitude, 7));
        __m256 value = _mm256_mul_ps(_mm256_cvtph_ps(half), _mm256_set1_ps(256.0f));
        __m128i nan = _mm_cmpeq_epi16(magnitude, _mm_set1_epi16(0x7f));
        __m256i quiet = _mm256_and_si256(
            _mm256_cvtepi16_epi32(nan), _mm256_set1_epi32(0x7fc00000));
        _mm256_storeu_ps(to + i, _mm256_or_ps(value, _mm256_castsi256_ps(quiet)));
    }
    done = n - n % 8;
#endif
    for (ptrdiff_t i = done; i < n; i++)
        to[i] = embag_e4m3_to_float((uint8_t)from[i]);
}

/* Whether the level has an instruction for the fused multiply-add. */
#if defined(__FMA__) || defined(__aarch64__)
#define EMBAG_FMA 1
#else
#define EMBAG_FMA 0
#endif

/* a * b + c rounded once, where a is an integer below 256: by the processor, or in double,
 * where the product is exact. Rounding the sum to double and then to float would round
 * twice, so the double is made odd wherever it is not exact: no odd double is halfway
 * between two floats. */
static inline float embag_fma(float a, float b, float c) {
#if EMBAG_FMA
    return __builtin_fmaf(a, b, c);
#else
    double product = (double)a * (double)b;
    double sum = product + (double)c;
    double from_c = sum - product;
    double error = (product - (sum - from_c)) + ((double)c - from_c);
    uint64_t bits, error_bits;
    memcpy(&bits, &sum, sizeof bits);
    memcpy(&error_bits, &error, sizeof error_bits);
    /* One bit away from zero, or towards it, where that makes an even double odd. Integer
     * arithmetic that even the baseline has for vectors: no comparisons. */
    uint64_t twice = error_bits << 1;
    uint64_t inexact = (twice | (0 - twice)) >> 63;
    uint64_t step = 1 - 2 * ((error_bits ^ bits) >> 63);
    bits += step & (0 - inexact) & ((bits & 1) - 1);
    double odd;
    memcpy(&odd, &bits, sizeof odd);
    sum = error == error ? odd : sum; /* the error of an infinite sum is NaN */
    return (float)sum;
#endif
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
#define embag_leads() (omp_get_thread_num() == 0)
#else
#define EMBAG_OPENMP 0
#define embag_leads() 1
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
 * levels by name is asked for the features that tell them apart on real processors (not for
 * f16c, which older clangs have no name for, and every processor with avx2 has). */
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
