/* The gather limit: read only one word of each cache line of the rows, in the order of `rows`.
 *
 * No embedding bag can be faster than the memory delivers lines. The number of misses in
 * flight depends on how lines are prefetched. So the caller (contenders.py) searches for the
 * best strategy: the cache to prefetch into, the number of rows ahead, and the number of rows
 * per burst. The file is compiled at run time with `cc -O3`. Each number of lines is a case of
 * its own: a loop counter and a branch per line would cost a quarter of the bandwidth.
 */
#include <stdint.h>

enum { LINE = 64 };

/* Return the i-th line of a row that touches `lines` lines, or one less: then the last line is
 * returned twice. */
static inline const char *line_of(uintptr_t row, int64_t row_bytes, int i, int lines)
{
    uintptr_t byte = i + 1 < lines ? row + (uintptr_t)i * LINE : row + (uintptr_t)row_bytes - 1;
    return (const char *)(byte & -(uintptr_t)LINE);
}

/* In turn, prefetch `burst` rows that are `ahead` rows away, and read `burst` rows. Return the
 * sum of the first words of all lines, so that the compiler cannot drop a read. `lines` and
 * `level` are literals where this is inlined. */
static inline __attribute__((always_inline)) uint64_t
gather_lines(const char *table, const int64_t *rows, int64_t n_rows, int64_t row_bytes,
             int lines, int level, int64_t ahead, int64_t burst)
{
    uint64_t sum = 0;
    for (int64_t start = -ahead; start < n_rows; start += burst) {
        int64_t stop = start + burst < n_rows ? start + burst : n_rows;
        int64_t prefetch_stop = stop + ahead < n_rows ? stop + ahead : n_rows;
        for (int64_t k = start + ahead; level && k < prefetch_stop; k++) {
            uintptr_t row = (uintptr_t)table + (uintptr_t)(rows[k] * row_bytes);
            for (int i = 0; i < lines; i++) {
                if (level == 1)
                    __builtin_prefetch(line_of(row, row_bytes, i, lines), 0, 3);
                else
                    __builtin_prefetch(line_of(row, row_bytes, i, lines), 0, 2);
            }
        }
        for (int64_t k = start < 0 ? 0 : start; k < stop; k++) {
            uintptr_t row = (uintptr_t)table + (uintptr_t)(rows[k] * row_bytes);
            for (int i = 0; i < lines; i++)
                sum += *(const uint64_t *)line_of(row, row_bytes, i, lines);
        }
    }
    return sum;
}

/* `level`: the cache to prefetch into, 1 or 2; 0 prefetches nothing. */
uint64_t gather(const char *table, const int64_t *rows, int64_t n_rows, int64_t row_bytes,
                int lines, int level, int64_t ahead, int64_t burst)
{
#define GATHER(lines)                                                                          \
    (level == 1   ? gather_lines(table, rows, n_rows, row_bytes, lines, 1, ahead, burst)       \
     : level == 2 ? gather_lines(table, rows, n_rows, row_bytes, lines, 2, ahead, burst)       \
                  : gather_lines(table, rows, n_rows, row_bytes, lines, 0, 0, n_rows + 1))
    switch (lines) {
    case 2: return GATHER(2);
    case 3: return GATHER(3);
    case 4: return GATHER(4);
    case 7: return GATHER(7);
    case 8: return GATHER(8);
    case 16: return GATHER(16);
    default: return GATHER(lines);
    }
}
