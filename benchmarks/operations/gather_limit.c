/* The gather limit: read one word of each cache line of the rows, or all of them, in the order of
 * `rows`. On some processors the loop that reads all of them is the faster one.
 *
 * No embedding bag can be faster than the memory delivers lines. The number of misses in
 * flight depends on how lines are prefetched. So the caller (contenders/limit.py) searches for
 * the best strategy: the cache to prefetch into, the number of rows ahead, and the number of
 * rows at once. The file is compiled at run time, for the number of lines of a row: a loop
 * counter and a branch per line would cost a quarter of the bandwidth.
 *
 *     cc -O3 -DLINES=4 [-fopenmp] -shared -fPIC gather_limit.c
 */
#include <stdint.h>

enum { LINE = 64 };
enum { WORDS = 8 }; /* of a line */
/* Where to prefetch; STREAM is prefetchnta. WHOLE: read all words of a line. */
enum { NOWHERE, L1, L2, STREAM, WHOLE };

/* Return the i-th line of a row that touches LINES lines, or fewer: then its last line is
 * returned again. */
static inline const char *line_of(uintptr_t row, int64_t row_bytes, int i)
{
    uintptr_t byte = i + 1 < LINES ? row + (uintptr_t)i * LINE : row + (uintptr_t)row_bytes - 1;
    return (const char *)(byte & -(uintptr_t)LINE);
}

/* In turn, prefetch `burst` rows that are `ahead` rows away, and read `burst` rows. Return the
 * sum of the words, so that the compiler cannot drop a read. `where` and `n_words`, of a line, are
 * literals where this is inlined. */
static inline __attribute__((always_inline)) uint64_t
gather_lines(const char *table, const int64_t *rows, int64_t n_rows, int64_t row_bytes,
             int where, int n_words, int64_t ahead, int64_t burst)
{
    uint64_t sums[WORDS] = {0}, sum = 0;
    for (int64_t start = -ahead; start < n_rows; start += burst) {
        int64_t stop = start + burst < n_rows ? start + burst : n_rows;
        int64_t prefetch_stop = stop + ahead < n_rows ? stop + ahead : n_rows;
        for (int64_t k = start + ahead; where && k < prefetch_stop; k++) {
            uintptr_t row = (uintptr_t)table + (uintptr_t)(rows[k] * row_bytes);
            for (int i = 0; i < LINES; i++) {
                if (where == L1)
                    __builtin_prefetch(line_of(row, row_bytes, i), 0, 3);
                else if (where == L2)
                    __builtin_prefetch(line_of(row, row_bytes, i), 0, 2);
                else
                    __builtin_prefetch(line_of(row, row_bytes, i), 0, 0);
            }
        }
        for (int64_t k = start < 0 ? 0 : start; k < stop; k++) {
            uintptr_t row = (uintptr_t)table + (uintptr_t)(rows[k] * row_bytes);
            for (int i = 0; i < LINES; i++) {
                const uint64_t *words = (const uint64_t *)line_of(row, row_bytes, i);
                for (int w = 0; w < n_words; w++)
                    sums[w] += words[w];
            }
        }
    }
    for (int w = 0; w < n_words; w++)
        sum += sums[w];
    return sum;
}

static uint64_t gather_on_one(const char *table, const int64_t *rows, int64_t n_rows,
                              int64_t row_bytes, int where, int64_t ahead, int64_t burst)
{
    switch (where) {
    case L1: return gather_lines(table, rows, n_rows, row_bytes, L1, 1, ahead, burst);
    case L2: return gather_lines(table, rows, n_rows, row_bytes, L2, 1, ahead, burst);
    case STREAM: return gather_lines(table, rows, n_rows, row_bytes, STREAM, 1, ahead, burst);
    case WHOLE + L1: return gather_lines(table, rows, n_rows, row_bytes, L1, WORDS, ahead, burst);
    case WHOLE + L2: return gather_lines(table, rows, n_rows, row_bytes, L2, WORDS, ahead, burst);
    default: return gather_lines(table, rows, n_rows, row_bytes, NOWHERE, 1, 0, n_rows + 1);
    }
}

/* With several threads, each takes a part of the rows as soon as it is free: threads are not
 * equally fast. */
uint64_t gather(const char *table, const int64_t *rows, int64_t n_rows, int64_t row_bytes,
                int where, int64_t ahead, int64_t burst, int n_threads)
{
    int64_t n_parts = n_threads == 1 ? 1 : 4 * n_threads;
    uint64_t sum = 0;
#ifdef _OPENMP
#pragma omp parallel for num_threads(n_threads) schedule(dynamic) reduction(+ : sum)
#endif
    for (int64_t part = 0; part < n_parts; part++) {
        int64_t start = n_rows * part / n_parts, stop = n_rows * (part + 1) / n_parts;
        sum += gather_on_one(table, rows + start, stop - start, row_bytes, where, ahead, burst);
    }
    return sum;
}
