/* What a bare loop takes that prefetches rows, decodes their entries and adds them to registers:
 * no ids are checked, no bags are cut, no results are rounded. x86-64 with AVX-512.
 *
 *     cc -O3 -march=native -DBITS=8 -DDIM=64 -shared -fPIC decode.c
 *
 * BITS is 16 for float16; else a row has DIM entries of so many bits, a scale and a bias.
 */
#include <immintrin.h>
#include <stdint.h>

enum { BAG = 40, VECTORS = DIM / 16, N_BYTES = DIM * BITS / 8 };
#if BITS == 16
enum { FACTOR_BYTES = 0 };
#elif BITS == 8
enum { FACTOR_BYTES = 8 };
#else
enum { FACTOR_BYTES = 4 };
#endif
enum { ROW_BYTES = N_BYTES + FACTOR_BYTES };

static inline void add_row(__m512 *sums, float *bias, const uint8_t *row)
{
#if BITS == 16
    (void)bias;
    for (int v = 0; v < VECTORS; v++)
        sums[v] = _mm512_add_ps(
            sums[v], _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(row + 32 * v))));
#else
    float factors[2];
    if (BITS == 8)
        __builtin_memcpy(factors, row + N_BYTES, 8);
    else
        for (int i = 0; i < 2; i++) {
            uint16_t half;
            __builtin_memcpy(&half, row + N_BYTES + 2 * i, 2);
            factors[i] = _cvtsh_ss(half);
        }
    *bias += factors[1];
    __m512 scale = _mm512_set1_ps(factors[0]);
    enum { PLANES = 8 / BITS, LOADS = VECTORS / PLANES };
    for (int i = 0; i < LOADS; i++) {
        __m128i bytes = _mm_loadu_si128((const __m128i *)(row + 16 * i));
        __m512i wide = _mm512_cvtepu8_epi32(bytes);
        for (int p = 0; p < PLANES; p++) {
            __m512i codes = _mm512_and_si512(_mm512_srli_epi32(wide, BITS * p),
                                             _mm512_set1_epi32((1 << BITS) - 1));
            __m512 *sum = &sums[i * PLANES + p];
            *sum = _mm512_fmadd_ps(_mm512_cvtepi32_ps(BITS == 8 ? wide : codes), scale, *sum);
        }
    }
#endif
}

static inline __attribute__((always_inline)) void
sum_bags_as(const uint8_t *table, const int64_t *rows, int64_t n, float *out, int near,
            int64_t ahead, int64_t burst)
{
    __m512 sums[VECTORS];
    float bias = 0;
    for (int v = 0; v < VECTORS; v++)
        sums[v] = _mm512_setzero_ps();
    for (int64_t k = 0; k < n; k++) {
        if (ahead && k % burst == 0)
            for (int64_t next = k + ahead; next < k + ahead + burst && next < n; next++) {
                const uint8_t *row = table + rows[next] * ROW_BYTES;
                for (int i = 0; i < ROW_BYTES; i += 64)
                    __builtin_prefetch(row + i, 0, near ? 3 : 2);
                __builtin_prefetch(row + ROW_BYTES - 1, 0, near ? 3 : 2);
            }
        add_row(sums, &bias, table + rows[k] * ROW_BYTES);
        if (k % BAG == BAG - 1) {
            for (int v = 0; v < VECTORS; v++) {
                _mm512_storeu_ps(out + 16 * v, _mm512_add_ps(sums[v], _mm512_set1_ps(bias)));
                sums[v] = _mm512_setzero_ps();
            }
            out += DIM;
            bias = 0;
        }
    }
}

void sum_bags(const uint8_t *table, const int64_t *rows, int64_t n, float *out, int near,
              int64_t ahead, int64_t burst)
{
    if (near)
        sum_bags_as(table, rows, n, out, 1, ahead, burst);
    else
        sum_bags_as(table, rows, n, out, 0, ahead, burst);
}
