/* Fill new memory with a byte, and find writes beyond its ends, for LD_PRELOAD.

Each block of malloc and its relatives lies between guards. All bytes of the guards and of the new
block have the value that `memory_fill` was given last. The guards are checked when the block is
freed, and `memory_n_damaged` returns how many blocks had a changed one. A block is filled again
when it is freed.

NumPy keeps small blocks for later arrays, and asks nobody. `memory_of_arrays` is an allocator
without such a cache, for PyDataMem_SetHandler (NEP 49). Needs glibc. Used by
tests/scripts/fill_memory.py.
*/
#define _GNU_SOURCE
#include <errno.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "array_memory.h"

void* __libc_malloc(size_t n);
void __libc_free(void* block);

#define GUARD 64
#define MARK 0x6d656d6f72796f66u

static atomic_uchar fill = 0xff;
static atomic_long n_damaged;

/* Before the guard that lies before each block. */
typedef struct {
    void* whole;
    size_t n;
    uint64_t mark;
    unsigned char fill;
    unsigned char unused[7];
} Header;

void memory_fill(unsigned char byte)
{
    fill = byte;
}

long memory_n_damaged(void)
{
    return n_damaged;
}

static Header* header_of(void* block)
{
    return (Header*)((char*)block - GUARD - sizeof(Header));
}

static void* new_block(size_t n, size_t alignment)
{
    const size_t before = sizeof(Header) + GUARD;
    if (n > PTRDIFF_MAX - before - GUARD - alignment) {
        errno = ENOMEM;
        return NULL;
    }
    char* whole = __libc_malloc(alignment + before + n + GUARD);
    if (!whole)
        return NULL;
    uintptr_t address = ((uintptr_t)whole + before + alignment - 1) / alignment * alignment;
    const unsigned char byte = fill;
    memset((char*)address - GUARD, byte, GUARD + n + GUARD);
    *header_of((void*)address) = (Header){whole, n, MARK, byte, {0}};
    return (void*)address;
}

static int is_damaged(const unsigned char* guard, unsigned char byte)
{
    for (int k = 0; k < GUARD; k++)
        if (guard[k] != byte)
            return 1;
    return 0;
}

void* malloc(size_t n)
{
    return new_block(n, 16);
}

void free(void* block)
{
    if (!block)
        return;
    Header* header = header_of(block);
    if (header->mark != MARK) { /* of the loader, from before this library */
        __libc_free(block);
        return;
    }
    const unsigned char* data = block;
    if (is_damaged(data - GUARD, header->fill) || is_damaged(data + header->n, header->fill))
        atomic_fetch_add(&n_damaged, 1);
    header->mark = 0;
    memset(block, fill, header->n);
    __libc_free(header->whole);
}

void* calloc(size_t n, size_t size)
{
    size_t n_bytes;
    if (__builtin_mul_overflow(n, size, &n_bytes)) {
        errno = ENOMEM;
        return NULL;
    }
    void* block = malloc(n_bytes);
    return block ? memset(block, 0, n_bytes) : NULL;
}

void* realloc(void* old, size_t n)
{
    void* block = malloc(n);
    if (!old || !block)
        return block;
    const size_t n_old = header_of(old)->n;
    memcpy(block, old, n < n_old ? n : n_old);
    free(old);
    return block;
}

void* memalign(size_t alignment, size_t n)
{
    return new_block(n, alignment < 16 ? 16 : alignment);
}

void* aligned_alloc(size_t alignment, size_t n)
{
    return memalign(alignment, n);
}

int posix_memalign(void** block, size_t alignment, size_t n)
{
    void* found = memalign(alignment, n);
    if (!found)
        return ENOMEM;
    *block = found;
    return 0;
}

size_t malloc_usable_size(void* block)
{
    return block ? header_of(block)->n : 0;
}

/* --- NumPy's allocator ------------------------------------------------------------------- */

static void* array_malloc(void* context, size_t n)
{
    (void)context;
    return malloc(n);
}

static void array_free(void* context, void* block, size_t n)
{
    (void)context;
    (void)n;
    free(block);
}
