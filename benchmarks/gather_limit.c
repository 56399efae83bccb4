/* The limit of a gather: only touch each cache line of the rows, in the order of `rows`.
 *
 * No embedding bag can be faster than the memory hands out lines. How many misses are in
 * flight depends on how lines are asked for, so the caller (contenders.py) looks for the
 * best of: the cache to ask into, how many rows ahead, and in bursts of how many.
 * Compiled at run time with `cc -O3`, each number of lines for itself: a loop's counter
 * and branch for each line cost a quarter of the bandwidth.
 */
#include <stdint.h>

enum { LINE = 64 };

/* The i-th line of a row that touches `lines` lines, or one less: then its last line is
 * also taken for the one after it. */
static inline const char *line_of(uintptr_t row, int64_t row_bytes, int i, int lines)
{
    uintptr_t byte = i + 1 < lines ? row + (uintptr_t)i * LINE : row + (uintptr_t)row_bytes - 1;
    return (const char *)(byte & -(uintptr_t)LINE);
}

/* Ask for `burst` rows, `ahead` rows from here, then read `burst` rows, and so on. The sum
 * of the first words of their lines is returned, so that no read can be left out. `lines`
 * and `level` are literals where this is inlined. */
static inline __attribute__((always_inline)) uint64_t
gather_lines(const char *table, const int64_t *rows, int64_t n_rows, int64_t row_bytes,
             int lines, int level, int64_t ahead, int64_t burst)
{
    uint64_t sum = 0;
    for (int64_t start = -ahead; start < n_rows; start += burst) {
        int64_t stop = start + burst < n_rows ? start + burst : n_rows;
        int64_t ask_stop = stop + ahead < n_rows ? stop + ahead : n_rows;
        for (int64_t k = start + ahead; level && k < ask_stop; k++) {
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

/* `level`: the cache that lines are asked into, 1 or 2; 0 asks for none. */
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
