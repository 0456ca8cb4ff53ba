"""What an engine's callers may give it; see checks.pyx."""
cimport numpy as cnp


cdef class Checks:
    cdef readonly object dtype
    cdef readonly object largest_event
    cdef void* largest
    cdef Py_ssize_t width
    cdef Py_ssize_t vocabulary
    cdef int typenum
    cdef int timed

    cdef bint fits(self, object x, int ndim) noexcept
    cdef bint all_fine(self, cnp.ndarray x) noexcept
    cdef bint all_within(self, const void* x, Py_ssize_t n) noexcept nogil
    cdef bint is_exact(self, object a, Py_ssize_t n, Py_ssize_t width, bint written) noexcept
    cdef int refuse_inexact(self, object a, str name, tuple shape, bint written) except -1
    cdef int check_apart(self, cnp.ndarray x, cnp.ndarray out) except -1
    cdef cnp.ndarray answers(self, object out, cnp.ndarray events, tuple shape)
