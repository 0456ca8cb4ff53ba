"""A network run by several threads: the streams of a large batch in contiguous shares.

The caller does the first share itself. Helpers wait on a condition variable between jobs
(no spinning), take their share without the GIL, and the last one done wakes the caller.
A stream's bits do not depend on the share it falls into (simd/kernel.h), so neither on
the number of threads. Batches too small to pay for the waking run in the caller alone.
"""
from libc.stdlib cimport calloc, free, malloc
from posix.unistd cimport getpid

from streamlstm._network cimport Network, forward

cdef extern from "<signal.h>" nogil:
    ctypedef struct sigset_t:
        pass
    int SIG_SETMASK
    int sigfillset(sigset_t*)
    int pthread_sigmask(int, const sigset_t*, sigset_t*)

# About 40 us of work: a few times what waking a thread takes.
cdef Py_ssize_t SHARED_MACS = 2_000_000


cdef void forward_share(Job* job, int part, int parts, void* work) noexcept nogil:
    cdef Py_ssize_t first = job.n * part // parts, last = job.n * (part + 1) // parts
    cdef Py_ssize_t stream_bytes = job.steps * job.plan.itemsize
    forward(job.plan, job.rows + first, last - first, job.steps,
            job.x + first * stream_bytes * job.plan.inputs,
            job.y + first * stream_bytes * job.plan.outputs, work)


cdef void* help_out(void* argument) noexcept nogil:
    cdef Helper* helper = <Helper*> argument
    cdef Team* team = helper.team
    cdef unsigned long seen = 0
    while True:
        pthread_mutex_lock(&team.mutex)
        while team.posts == seen and not team.stopping:
            pthread_cond_wait(&team.posted, &team.mutex)
        seen = team.posts
        pthread_mutex_unlock(&team.mutex)
        if team.stopping:
            return NULL
        forward_share(&team.job, helper.part, team.threads, helper.work)
        pthread_mutex_lock(&team.mutex)
        team.pending -= 1
        if team.pending == 0:
            pthread_cond_signal(&team.done)
        pthread_mutex_unlock(&team.mutex)


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
                helper.team, helper.part = team, k + 1
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
        if team.threads == 1 or n < team.threads or n * steps * self.network.macs < SHARED_MACS:
            forward(&self.network.plan, rows, n, steps, x, y, team.work)
            return
        team.job.plan, team.job.rows = &self.network.plan, rows
        team.job.n, team.job.steps = n, steps
        team.job.x, team.job.y = <const char*> x, <char*> y
        pthread_mutex_lock(&team.mutex)
        team.posts += 1
        team.pending = team.threads - 1
        pthread_cond_broadcast(&team.posted)
        pthread_mutex_unlock(&team.mutex)
        forward_share(&team.job, 0, team.threads, team.work)
        pthread_mutex_lock(&team.mutex)
        while team.pending:
            pthread_cond_wait(&team.done, &team.mutex)
        pthread_mutex_unlock(&team.mutex)
