/* Let calls of the system fail, for LD_PRELOAD.

Calls about a folder, by path or by an open file, are counted from `calls_arm` on, in all threads.
The one with the given number fails; in some modes all that follow it fail, too. `calls_disarm`
returns how many were counted. Used by tests/scripts/fail_system_calls.py.
*/
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

/* What a call does. */
enum { OTHER = 1, TAKES_SPACE = 2, READS = 4, WRITES = 8 };

/* How calls fail. */
enum {
    ONE,          /* the call returns an error */
    FULL_DISK,    /* this call and all later ones that take space return an error */
    SHORT,        /* a read or a write transfers half of its first buffer */
    END_OF_FILE,  /* this read and all later ones return no bytes */
};

static const int COUNTED[] = {
    [ONE] = OTHER | TAKES_SPACE | READS | WRITES,
    [FULL_DISK] = TAKES_SPACE | WRITES,
    [SHORT] = READS | WRITES,
    [END_OF_FILE] = READS,
};

static char folder[4096];
static int mode, error_number;
static long number;
static atomic_int armed;
static atomic_long n_calls;
static const char* _Atomic failed_call;
static char failed_path[4096];

void calls_arm(const char* path, int how, int error, long which)
{
    snprintf(folder, sizeof folder, "%s", path);
    mode = how;
    error_number = error;
    number = which;
    n_calls = 0;
    failed_call = "";
    failed_path[0] = 0;
    armed = 1;
}

long calls_disarm(void)
{
    armed = 0;
    return n_calls;
}

/* The first call that failed, and the file that it was about; "" if none did. */
const char* calls_failed(void)
{
    return failed_call;
}

const char* calls_failed_path(void)
{
    return failed_path;
}

static int is_inside(const char* path)
{
    size_t n = strlen(folder);
    return strncmp(path, folder, n) == 0 && (path[n] == '/' || path[n] == 0);
}

static const char* path_of(int file)
{
    static _Thread_local char path[4096];
    char link[64];
    int error = errno;
    ssize_t n;
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    n = readlink(link, path, sizeof path - 1);
    errno = error;
    path[n < 0 ? 0 : n] = 0;
    return path;
}

static int fails(const char* call, int kind, const char* path)
{
    long n;
    const char* none = "";
    if (!armed || !(COUNTED[mode] & kind) || !is_inside(path))
        return 0;
    n = atomic_fetch_add(&n_calls, 1);
    if (mode == FULL_DISK || mode == END_OF_FILE ? n < number : n != number)
        return 0;
    if (atomic_compare_exchange_strong(&failed_call, &none, call))
        snprintf(failed_path, sizeof failed_path, "%s", path);
    errno = error_number;
    return 1;
}

/* A function `call` of the system, about a path, which fails if it is its turn. */
#define FAILING(result, call, parameters, arguments, path, kind, failure)         \
    result call parameters                                                        \
    {                                                                             \
        static result(*real) parameters;                                          \
        if (real == NULL)                                                         \
            real = (result(*) parameters)dlsym(RTLD_NEXT, #call);                 \
        if (armed && fails(#call, kind, path))                                    \
            return failure;                                                       \
        return real arguments;                                                    \
    }

/* By path */

#define OPENING_KIND (flags & O_CREAT ? TAKES_SPACE : OTHER)
#define OPENING(call)                                                             \
    int call(const char* path, int flags, ...)                                    \
    {                                                                             \
        static int (*real)(const char*, int, ...);                                \
        va_list rest;                                                             \
        mode_t rights;                                                            \
        va_start(rest, flags);                                                    \
        rights = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0;        \
        va_end(rest);                                                             \
        if (real == NULL)                                                         \
            real = (int (*)(const char*, int, ...))dlsym(RTLD_NEXT, #call);       \
        if (fails(#call, OPENING_KIND, path))                                     \
            return -1;                                                            \
        return real(path, flags, rights);                                         \
    }
OPENING(open)
OPENING(open64)

#define PATH(call, parameters, arguments, kind) \
    FAILING(int, call, parameters, arguments, path, kind, -1)
PATH(rename, (const char* path, const char* to), (path, to), TAKES_SPACE)
PATH(mkdir, (const char* path, mode_t rights), (path, rights), TAKES_SPACE)
PATH(unlink, (const char* path), (path), OTHER)
PATH(stat, (const char* path, struct stat* status), (path, status), OTHER)
PATH(lstat, (const char* path, struct stat* status), (path, status), OTHER)
PATH(stat64, (const char* path, struct stat64* status), (path, status), OTHER)
PATH(lstat64, (const char* path, struct stat64* status), (path, status), OTHER)
/* Programs built with glibc before 2.33 call these. */
PATH(__xstat, (int version, const char* path, struct stat* status), (version, path, status), OTHER)
PATH(__xstat64, (int version, const char* path, struct stat64* status), (version, path, status),
     OTHER)

/* By open file */

#define DESCRIPTOR(call, parameters, arguments, kind) \
    FAILING(int, call, parameters, arguments, path_of(file), kind, -1)
DESCRIPTOR(ftruncate, (int file, off_t n), (file, n), TAKES_SPACE)
DESCRIPTOR(ftruncate64, (int file, off64_t n), (file, n), TAKES_SPACE)
DESCRIPTOR(fstat, (int file, struct stat* status), (file, status), OTHER)
DESCRIPTOR(fstat64, (int file, struct stat64* status), (file, status), OTHER)
DESCRIPTOR(__fxstat, (int version, int file, struct stat* status), (version, file, status), OTHER)
DESCRIPTOR(__fxstat64, (int version, int file, struct stat64* status), (version, file, status),
           OTHER)
DESCRIPTOR(fchmod, (int file, mode_t rights), (file, rights), OTHER)
FAILING(off_t, lseek, (int file, off_t to, int from), (file, to, from), path_of(file),
        OTHER, -1)
FAILING(off64_t, lseek64, (int file, off64_t to, int from), (file, to, from),
        path_of(file), OTHER, -1)
/* These return the error. */
FAILING(int, posix_fallocate, (int file, off_t at, off_t n), (file, at, n), path_of(file),
        TAKES_SPACE, error_number)
FAILING(int, posix_fallocate64, (int file, off64_t at, off64_t n), (file, at, n),
        path_of(file), TAKES_SPACE, error_number)

#define MAPPING(call, offset)                                                              \
    FAILING(void*, call, (void* at, size_t n, int rights, int flags, int file, offset from), \
            (at, n, rights, flags, file, from), file >= 0 ? path_of(file) : "", OTHER,  \
            MAP_FAILED)
MAPPING(mmap, off_t)
MAPPING(mmap64, off64_t)

/* Nothing is flushed, which takes most of the time. */
int fsync(int file)
{
    return fails("fsync", TAKES_SPACE, path_of(file)) ? -1 : 0;
}

/* The file is closed, as Linux does even if it reports an error. */
int close(int file)
{
    static int (*real)(int);
    int fault, flags = armed ? fcntl(file, F_GETFL) : 0;
    if (real == NULL)
        real = (int (*)(int))dlsym(RTLD_NEXT, "close");
    fault = armed && fails("close", flags & O_ACCMODE ? TAKES_SPACE : OTHER, path_of(file));
    if (!fault)
        return real(file);
    real(file);
    errno = error_number;
    return -1;
}

/* Reads and writes: of `n` bytes, or of buffers. */

#define TRANSFER(call, parameters, arguments, n, kind)                            \
    ssize_t call parameters                                                       \
    {                                                                             \
        static ssize_t(*real) parameters;                                         \
        if (real == NULL)                                                         \
            real = (ssize_t(*) parameters)dlsym(RTLD_NEXT, #call);                \
        if (armed && (n) > (mode == SHORT) && fails(#call, kind, path_of(file))) { \
            if (mode != SHORT)                                                    \
                return mode == END_OF_FILE ? 0 : -1;                              \
            (n) = (n) / 2;                                                        \
        }                                                                         \
        return real arguments;                                                    \
    }
TRANSFER(read, (int file, void* to, size_t n), (file, to, n), n, READS)
TRANSFER(pread, (int file, void* to, size_t n, off_t at), (file, to, n, at), n, READS)
TRANSFER(pread64, (int file, void* to, size_t n, off64_t at), (file, to, n, at), n, READS)
TRANSFER(write, (int file, const void* from, size_t n), (file, from, n), n, WRITES)
TRANSFER(pwrite, (int file, const void* from, size_t n, off_t at), (file, from, n, at), n, WRITES)
TRANSFER(pwrite64, (int file, const void* from, size_t n, off64_t at), (file, from, n, at), n,
         WRITES)

/* Python's os.preadv, for which it describes one buffer. */
ssize_t preadv64v2(int file, const struct iovec* to, int n, off64_t at, int flags)
{
    static ssize_t (*real)(int, const struct iovec*, int, off64_t, int);
    struct iovec half = *to;
    if (real == NULL)
        real = (ssize_t(*)(int, const struct iovec*, int, off64_t, int))dlsym(RTLD_NEXT,
                                                                              "preadv64v2");
    if (!armed || half.iov_len <= (mode == SHORT) || !fails("preadv64v2", READS, path_of(file)))
        return real(file, to, n, at, flags);
    half.iov_len /= 2;
    return mode == SHORT ? real(file, &half, 1, at, flags) : mode == END_OF_FILE ? 0 : -1;
}
