/* The update limit: change one word of each cache line of the rows of several arrays, or all words,
 * in the order of `rows`. The arrays are a table and the states of an optimizer.
 *
 * No training step can be faster than memory delivers lines and takes them back. The caller
 * (contenders/update_limit.py) searches for the best way to prefetch, as for gather_limit.c. The
 * file is compiled at run time, for the lines of a row and the number of arrays.
 *
 *     cc -O3 -DLINES=4 -DN_WIDE=2 -DN_NARROW=0 [-mprfchw] [-fopenmp] -shared -fPIC update_limit.c
 */
#include <stdint.h>

enum { LINE = 64 };
enum { WORDS = 8 }; /* of a line */
/* Where to prefetch; STREAM is prefetchnta, OWNED is for writing. WHOLE: change all words. */
enum { NOWHERE, L1, L2, STREAM, OWNED, WHOLE };

struct arrays {
    char *wide[N_WIDE];             /* rows of LINES lines, which begin at a line */
    float *narrow[N_NARROW + 1];    /* a number for each row; the last is not used */
};

static inline __attribute__((always_inline)) void prefetch(const void *address, int where)
{
    if (where == L1)
        __builtin_prefetch(address, 0, 3);
    else if (where == L2)
        __builtin_prefetch(address, 0, 2);
    else if (where == STREAM)
        __builtin_prefetch(address, 0, 0);
    else
        __builtin_prefetch(address, 1, 3);
}

/* In turn, prefetch `burst` rows that are `ahead` rows away, and change `burst` rows. `where` and
 * `n_words`, of a line, are literals where this is inlined. */
static inline __attribute__((always_inline)) void
change_lines(const struct arrays *arrays, const int64_t *rows, int64_t n_rows, int where,
             int n_words, int64_t ahead, int64_t burst)
{
    for (int64_t start = -ahead; start < n_rows; start += burst) {
        int64_t stop = start + burst < n_rows ? start + burst : n_rows;
        int64_t prefetch_stop = stop + ahead < n_rows ? stop + ahead : n_rows;
        for (int64_t k = start + ahead; where && k < prefetch_stop; k++) {
            for (int a = 0; a < N_WIDE; a++)
                for (int i = 0; i < LINES; i++)
                    prefetch(arrays->wide[a] + (rows[k] * LINES + i) * LINE, where);
            for (int a = 0; a < N_NARROW; a++)
                prefetch(arrays->narrow[a] + rows[k], where);
        }
        for (int64_t k = start < 0 ? 0 : start; k < stop; k++) {
            for (int a = 0; a < N_WIDE; a++)
                for (int i = 0; i < LINES; i++) {
                    double *words = (double *)(arrays->wide[a] + (rows[k] * LINES + i) * LINE);
                    for (int w = 0; w < n_words; w++)
                        words[w] += 1;
                }
            for (int a = 0; a < N_NARROW; a++)
                arrays->narrow[a][rows[k]] += 1;
        }
    }
}

static void change_on_one(const struct arrays *arrays, const int64_t *rows, int64_t n_rows,
                          int where, int64_t ahead, int64_t burst)
{
    switch (where) {
    case L1: return change_lines(arrays, rows, n_rows, L1, 1, ahead, burst);
    case L2: return change_lines(arrays, rows, n_rows, L2, 1, ahead, burst);
    case STREAM: return change_lines(arrays, rows, n_rows, STREAM, 1, ahead, burst);
    case OWNED: return change_lines(arrays, rows, n_rows, OWNED, 1, ahead, burst);
    case WHOLE + L1: return change_lines(arrays, rows, n_rows, L1, WORDS, ahead, burst);
    case WHOLE + L2: return change_lines(arrays, rows, n_rows, L2, WORDS, ahead, burst);
    case WHOLE + OWNED: return change_lines(arrays, rows, n_rows, OWNED, WORDS, ahead, burst);
    default: return change_lines(arrays, rows, n_rows, NOWHERE, 1, 0, n_rows + 1);
    }
}

/* With several threads, each takes a part of the rows as soon as it is free. Rows differ, so no
 * two threads change one word; narrow arrays may share a line. */
void change(const struct arrays *arrays, const int64_t *rows, int64_t n_rows, int where,
            int64_t ahead, int64_t burst, int n_threads)
{
    int64_t n_parts = n_threads == 1 ? 1 : 4 * n_threads;
#ifdef _OPENMP
#pragma omp parallel for num_threads(n_threads) schedule(dynamic)
#endif
    for (int64_t part = 0; part < n_parts; part++) {
        int64_t start = n_rows * part / n_parts, stop = n_rows * (part + 1) / n_parts;
        change_on_one(arrays, rows + start, stop - start, where, ahead, burst);
    }
}
