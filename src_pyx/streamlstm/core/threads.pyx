"""A network run by several threads, which share the streams of a large batch.

Each thread takes a contiguous share of the streams, and another when it is done, until
none is left; the caller does too, so a helper that wakes late costs nothing. Helpers wait
on a condition variable between jobs (no spinning), join a job while it is open, and the
last one done wakes the caller. A stream's bits do not depend on the share it falls into
(kernels/kernel.h), so neither on the number of threads. Batches too small to pay for the
waking run in the caller alone.
"""
from libc.stdlib cimport calloc, free, malloc
from posix.unistd cimport getpid

from streamlstm.core.network cimport Network, forward

cdef extern from "<signal.h>" nogil:
    ctypedef struct sigset_t:
        pass
    int SIG_SETMASK
    int sigfillset(sigset_t*)
    int pthread_sigmask(int, const sigset_t*, sigset_t*)

cdef extern from *:
    Py_ssize_t fetch_add "__atomic_fetch_add" (Py_ssize_t*, Py_ssize_t, int) noexcept nogil

# About 40 us of work: a few times what waking a thread takes.
cdef Py_ssize_t SHARED_MACS = 2_000_000


# Shares for each thread: enough to even out who wakes when, few enough to stay efficient.
cdef Py_ssize_t SHARES = 8
cdef Py_ssize_t SHARE_MIN = 12  # streams; whole tiles of every kernel


cdef void take_shares(Job* job, void* work) noexcept nogil:
    cdef Py_ssize_t first, count
    cdef Py_ssize_t stream_bytes = job.steps * job.plan.number_bytes
    while True:
        first = fetch_add(&job.taken, job.share, 0)  # relaxed: the mutex orders all else
        if first >= job.n:
            return
        count = min(job.share, job.n - first)
        forward(job.plan, job.rows + first, count, job.steps,
                job.x + first * stream_bytes * job.plan.inputs,
                job.y + first * stream_bytes * job.plan.outputs, work)


cdef void* help_out(void* argument) noexcept nogil:
    cdef Helper* helper = <Helper*> argument
    cdef Team* team = helper.team
    pthread_mutex_lock(&team.mutex)
    while not team.stopping:
        if not team.open:
            pthread_cond_wait(&team.posted, &team.mutex)
            continue
        team.busy += 1
        pthread_mutex_unlock(&team.mutex)
        take_shares(&team.job, helper.work)
        pthread_mutex_lock(&team.mutex)
        team.open = False  # nothing was left to take
        team.busy -= 1
        if team.busy == 0:
            pthread_cond_signal(&team.done)
    pthread_mutex_unlock(&team.mutex)
    return NULL


cdef class Threads:
    """`threads` threads (the caller's included) for one network."""

    def __cinit__(self, Network network, int threads):
        cdef Team* team = &self.team
        cdef Helper* helper
        cdef sigset_t every, before
        cdef int k
        self.network = network
        self.pid = getpid()
        team.threads = threads
        pthread_mutex_init(&team.mutex, NULL)
        pthread_cond_init(&team.posted, NULL)
        pthread_cond_init(&team.done, NULL)
        # Untouched pages cost nothing: a small batch makes only its own part resident.
        team.work = malloc(network.plan.work_bytes)
        team.helpers = <Helper*> calloc(threads, sizeof(Helper))
        if not team.work or not team.helpers:
            raise MemoryError("no memory for the network's work area")
        sigfillset(&every)  # signals are for the program's own threads
        pthread_sigmask(SIG_SETMASK, &every, &before)
        try:
            for k in range(threads - 1):
                helper = &team.helpers[k]
                helper.team = team
                helper.work = malloc(network.plan.work_bytes)
                if not helper.work or pthread_create(&helper.thread, NULL, help_out, helper):
                    raise MemoryError(f"the system gives no {threads} threads")
                self.started += 1
        finally:
            pthread_sigmask(SIG_SETMASK, &before, NULL)

    def __dealloc__(self):
        self.stop()
        if self.team.helpers:
            for k in range(self.team.threads - 1):
                free(self.team.helpers[k].work)
        free(self.team.helpers)
        free(self.team.work)

    cdef void stop(self) noexcept:
        """End the helpers. After a fork the child has none."""
        cdef int k
        if self.started == 0 or self.pid != getpid():
            return
        pthread_mutex_lock(&self.team.mutex)
        self.team.stopping = True
        pthread_cond_broadcast(&self.team.posted)
        pthread_mutex_unlock(&self.team.mutex)
        for k in range(self.started):
            pthread_join(self.team.helpers[k].thread, NULL)
        self.started = 0

    cdef void run(
        self, char** rows, Py_ssize_t n, Py_ssize_t steps, const void* x, void* y,
    ) noexcept nogil:
        """One micro-batch through the network; the caller holds the engine's lock."""
        cdef Team* team = &self.team
        if team.threads == 1 or n * steps * self.network.macs < SHARED_MACS:
            forward(&self.network.plan, rows, n, steps, x, y, team.work)
            return
        team.job.plan, team.job.rows = &self.network.plan, rows
        team.job.n, team.job.steps = n, steps
        team.job.x, team.job.y = <const char*> x, <char*> y
        team.job.share = max(n // (SHARES * team.threads) // SHARE_MIN * SHARE_MIN, SHARE_MIN)
        team.job.taken = 0
        pthread_mutex_lock(&team.mutex)
        team.open = True
        pthread_cond_broadcast(&team.posted)
        pthread_mutex_unlock(&team.mutex)
        take_shares(&team.job, team.work)
        pthread_mutex_lock(&team.mutex)
        team.open = False
        while team.busy:
            pthread_cond_wait(&team.done, &team.mutex)
        pthread_mutex_unlock(&team.mutex)
