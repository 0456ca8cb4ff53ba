"""A network run by several threads; see threads.pyx."""
from streamlstm.core.network cimport Network, Plan

cdef extern from "<pthread.h>" nogil:
    ctypedef struct pthread_t:
        pass
    ctypedef struct pthread_mutex_t:
        pass
    ctypedef struct pthread_cond_t:
        pass
    int pthread_create(pthread_t*, void*, void* (*)(void*) noexcept nogil, void*)
    int pthread_join(pthread_t, void**)
    int pthread_mutex_init(pthread_mutex_t*, void*)
    int pthread_mutex_lock(pthread_mutex_t*)
    int pthread_mutex_unlock(pthread_mutex_t*)
    int pthread_cond_init(pthread_cond_t*, void*)
    int pthread_cond_wait(pthread_cond_t*, pthread_mutex_t*)
    int pthread_cond_signal(pthread_cond_t*)
    int pthread_cond_broadcast(pthread_cond_t*)


# One micro-batch. Threads take contiguous shares of its streams until none is left.
ctypedef struct Job:
    const Plan* plan
    char** rows
    Py_ssize_t n, steps
    const char* x
    char* y
    Py_ssize_t share        # streams taken at a time
    Py_ssize_t taken        # streams taken so far, changed atomically


ctypedef struct Helper:
    pthread_t thread
    Team* team
    void* work              # its scratch


ctypedef struct Team:
    int threads             # the caller's included
    Helper* helpers         # threads - 1
    void* work              # the caller's scratch
    pthread_mutex_t mutex
    pthread_cond_t posted, done
    bint open               # there is a job to join
    int busy                # helpers at work on it
    bint stopping
    Job job


cdef class Threads:
    cdef Team team
    cdef Network network
    cdef int started
    cdef int pid

    cdef void run(
        self, char** rows, Py_ssize_t n, Py_ssize_t steps, const void* x, void* y,
    ) noexcept nogil
    cdef void stop(self) noexcept
