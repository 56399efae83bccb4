/* Python under MemorySanitizer, and memory that counts as unwritten.

This file and embag are compiled with -fsanitize=memory. CPython and NumPy are not, and
MemorySanitizer does not see what they write. So new memory counts as written, except what embag's
compiled code allocates:

- by malloc and PyMem_RawMalloc, which are compiled as `embag_malloc`, and
- as arrays of NumPy: `memory_of_arrays` is an allocator for PyDataMem_SetHandler (NEP 49).

Used by tests/scripts/poison_memory.py.
*/
#define _GNU_SOURCE
#include <dlfcn.h>
#include <execinfo.h>
#include <malloc.h>
#include <sanitizer/msan_interface.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "array_memory.h"

int Py_BytesMain(int argc, char** argv);

void* embag_malloc(size_t n)
{
    void* block = malloc(n);
    if (block)
        __msan_poison(block, n);
    return block;
}

void embag_free(void* block)
{
    if (block)
        __msan_unpoison(block, malloc_usable_size(block));
    free(block);
}

/* Return whether the first frame that is not of NumPy is of embag. */
static int embag_allocates(void)
{
    void* frames[20];
    Dl_info found;
    const int n_frames = backtrace(frames, 20);
    for (int k = 2; k < n_frames; k++)
        if (dladdr(frames[k], &found) && !strstr(found.dli_fname, "/_multiarray_umath"))
            return strstr(found.dli_fname, "/embag/") != NULL;
    return 0;
}

static void* array_malloc(void* context, size_t n)
{
    (void)context;
    return embag_allocates() ? embag_malloc(n) : malloc(n);
}

static void array_free(void* context, void* block, size_t n)
{
    (void)context;
    (void)n;
    embag_free(block);
}

int main(int argc, char** argv)
{
    return Py_BytesMain(argc, argv);
}
