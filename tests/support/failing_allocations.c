/* Let an allocation of some compiled module fail, for LD_PRELOAD.

The calls of malloc, calloc and realloc in libraries whose path contains a text are counted from
`allocations_arm` on, in all threads; the one with the given number returns NULL.
`allocations_disarm` returns how many were counted. Needs glibc. Used by tests/scripts/fail_each_allocation.py.
*/
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

void* __libc_malloc(size_t n);
void* __libc_calloc(size_t n, size_t size);
void* __libc_realloc(void* old, size_t n);

static atomic_int armed;
static atomic_long n_allocations;
static long number;
static char caller_has[100];

void allocations_arm(const char* text, long which)
{
    snprintf(caller_has, sizeof caller_has, "%s", text);
    n_allocations = 0;
    number = which;
    armed = 1;
}

long allocations_disarm(void)
{
    armed = 0;
    return n_allocations;
}

static int fails(const void* caller)
{
    Dl_info found;
    if (!armed || !dladdr(caller, &found) || !strstr(found.dli_fname, caller_has))
        return 0;
    if (atomic_fetch_add(&n_allocations, 1) != number)
        return 0;
    errno = ENOMEM;
    return 1;
}

#define CALLER __builtin_return_address(0)

void* malloc(size_t n)
{
    return fails(CALLER) ? NULL : __libc_malloc(n);
}

void* calloc(size_t n, size_t size)
{
    return fails(CALLER) ? NULL : __libc_calloc(n, size);
}

void* realloc(void* old, size_t n)
{
    return fails(CALLER) ? NULL : __libc_realloc(old, n);
}
