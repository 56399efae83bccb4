/* Threads and forks, for _teams.pyx: the calls of OpenMP and POSIX that need C. */
#ifndef EMBAG_TEAMS_H
#define EMBAG_TEAMS_H

#include <limits.h>
#include <stddef.h>
#ifdef _OPENMP
#include <omp.h>
#if defined(__unix__) || defined(__APPLE__)
#define EMBAG_POSIX_TEAMS /* and so forks, and threads that may not start */
#include <pthread.h>
#include <stdlib.h>
#endif
#endif

#if defined(_MSC_VER)
#define EMBAG_THREAD_LOCAL static __declspec(thread)
#else
#define EMBAG_THREAD_LOCAL static __thread
#endif

/* Of the calling thread. */
EMBAG_THREAD_LOCAL int embag_n_processors_seen; /* 0: not counted yet */
EMBAG_THREAD_LOCAL int embag_carried_over;      /* by a fork, from the parent process */
static int embag_n_forks;                       /* since the process that imported embag */

/* The number of threads of the calling thread's next team, as OpenMP would choose it. */
static inline int embag_openmp_threads(void) {
#ifdef _OPENMP
    return omp_get_max_threads();
#else
    return 1;
#endif
}

/* The number of processors that the calling thread may run on, counted once, as that is a
 * system call. OpenMP counts all of them even if OMP_PROC_BIND has bound the thread to one. */
static inline int embag_n_processors(void) {
#ifdef _OPENMP
    if (embag_n_processors_seen == 0)
        embag_n_processors_seen = omp_get_num_procs();
    return embag_n_processors_seen;
#else
    return 1;
#endif
}

/* OMP_THREAD_LIMIT: the largest team that OpenMP allows, with the thread that leads it. */
static inline int embag_thread_limit(void) {
#if defined(_OPENMP) && _OPENMP >= 200805
    return omp_get_thread_limit();
#else
    return INT_MAX;
#endif
}

/* OMP_DYNAMIC: whether OpenMP may give a region fewer threads than requested. */
static inline int embag_is_dynamic(void) {
#ifdef _OPENMP
    return omp_get_dynamic() != 0;
#else
    return 0;
#endif
}

/* The number of places that OpenMP binds the threads of a team to; 0 without binding. */
static inline int embag_n_places(void) {
#if defined(_OPENMP) && _OPENMP >= 201511
    const omp_proc_bind_t bind = omp_get_proc_bind();
    const int n = bind == omp_proc_bind_false ? 0 : omp_get_num_places();
    /* `master` puts all threads of a team in the leader's place. A thread that OpenMP did not start
     * has the first place. */
    return bind == omp_proc_bind_master && n > 1 ? 1 : n;
#else
    return 0;
#endif
}

/* How many processors of a place the process may use, and their numbers. */
static inline int embag_place_size(int place) {
#if defined(_OPENMP) && _OPENMP >= 201511
    return omp_get_place_num_procs(place);
#else
    (void)place;
    return 0;
#endif
}
static inline void embag_list_place(int place, int *processors) {
#if defined(_OPENMP) && _OPENMP >= 201511
    omp_get_place_proc_ids(place, processors);
#else
    (void)place;
    (void)processors;
#endif
}

#ifdef EMBAG_POSIX_TEAMS
EMBAG_THREAD_LOCAL int embag_team = 1; /* the size of the calling thread's team, as far as known */
static pthread_mutex_t embag_growing = PTHREAD_MUTEX_INITIALIZER; /* one team grows at a time */

/* Runs in the child, where only the thread that forked exists. */
static void embag_after_fork(void) {
    static const pthread_mutex_t fresh = PTHREAD_MUTEX_INITIALIZER;
    embag_growing = fresh;
    embag_carried_over = 1;
    embag_n_processors_seen = 0;
    embag_n_forks++;
}

static void *embag_wait_for_lock(void *lock) {
    pthread_mutex_lock((pthread_mutex_t *)lock);
    pthread_mutex_unlock((pthread_mutex_t *)lock);
    return NULL;
}

/* Memory for what OpenMP and the other threads of the process allocate between the trial of a
 * team's threads and its start. The C library reserves as much for a thread's first allocation. */
#define EMBAG_SPARE_BYTES ((size_t)64 << 20)

/* Return how many of n threads, with stacks of this size (0: the default), can exist at once
 * beside EMBAG_SPARE_BYTES. */
static int embag_try_threads(int n, size_t stack_bytes) {
    pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    pthread_attr_t attributes;
    int n_started = 0;
    pthread_t *threads = (pthread_t *)malloc((size_t)n * sizeof(pthread_t));
    void *spare = malloc(EMBAG_SPARE_BYTES); /* never touched */
    if (threads == NULL || spare == NULL) {
        free(threads);
        free(spare);
        return 0;
    }
    pthread_attr_init(&attributes);
    if (stack_bytes > 0)
        pthread_attr_setstacksize(&attributes, stack_bytes);
    pthread_mutex_lock(&lock);
    while (n_started < n && pthread_create(&threads[n_started], &attributes,
                                           embag_wait_for_lock, &lock) == 0)
        n_started++;
    pthread_mutex_unlock(&lock);
    for (int i = 0; i < n_started; i++)
        pthread_join(threads[i], NULL);
    pthread_attr_destroy(&attributes);
    free(threads);
    free(spare);
    return n_started;
}

/* Start a team of n threads. OpenMP keeps it for later regions. */
static void embag_start_team(int n) {
    int n_there = 0;
#pragma omp parallel num_threads(n) reduction(+ : n_there)
    n_there += 1;
    (void)n_there;
}
#endif

/* Keep `embag_carried_over` and `embag_n_forks` up to date in all forked processes, also those
 * that other code forks. Return 0 for success. */
static inline int embag_watch_forks(void) {
#ifdef EMBAG_POSIX_TEAMS
    return pthread_atfork(NULL, NULL, embag_after_fork);
#else
    return 0;
#endif
}

/* Return the largest team, up to n, that the calling thread can lead now.
 *
 * OpenMP's runtimes end the process if a thread cannot be started. So before a team grows, its
 * new threads are tried, and then the team is started under the same lock, before another
 * thread of the process uses up the resources. (OpenMP ends the threads that a smaller team
 * does not need.) OpenMP may still give a region fewer threads, with OMP_DYNAMIC or inside
 * another region; as it decides that for each region, the threads are not tried again. */
static inline int embag_ready_team(int n, size_t stack_bytes) {
#ifdef EMBAG_POSIX_TEAMS
    if (n > embag_team) {
        pthread_mutex_lock(&embag_growing);
        n = embag_team + embag_try_threads(n - embag_team, stack_bytes);
        if (n > 1)
            embag_start_team(n);
        pthread_mutex_unlock(&embag_growing);
    }
    if (n > 1)
        embag_team = n;
#else
    (void)stack_bytes;
#endif
    return n;
}

#endif
