/* An allocator for NumPy's arrays, by the including file's `array_malloc` and `array_free`.

`memory_of_arrays` is the PyDataMem_Handler of numpy/ndarraytypes.h, version 1, for
PyDataMem_SetHandler (NEP 49): see array_memory.py.
*/
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

static void* array_malloc(void* context, size_t n);
static void array_free(void* context, void* block, size_t n);

static void* array_calloc(void* context, size_t n, size_t size)
{
    (void)context;
    return calloc(n, size);
}

static void* array_realloc(void* context, void* old, size_t n)
{
    (void)context;
    return realloc(old, n);
}

struct {
    char name[127];
    uint8_t version;
    void* context;
    void* (*malloc)(void*, size_t);
    void* (*calloc)(void*, size_t, size_t);
    void* (*realloc)(void*, void*, size_t);
    void (*free)(void*, void*, size_t);
} memory_of_arrays = {"tests", 1, NULL, array_malloc, array_calloc, array_realloc, array_free};
