"""State rows and their steps; see engine.pyx."""
cimport cython
cimport numpy as cnp
from libc.stdint cimport uint32_t

from streamlstm.core.arena cimport Arena
from streamlstm.core.checks cimport Checks
from streamlstm.core.head_steps cimport HeadSteps
from streamlstm.core.network cimport Network
from streamlstm.core.threads cimport Threads


cdef class EngineCore:
    cdef readonly Network network
    cdef HeadSteps head_steps           # None: events are the network's own inputs
    cdef readonly Py_ssize_t inputs, outputs    # widths of events and of their answers
    cdef readonly Py_ssize_t state_size         # numbers of a session's state
    cdef Threads threads
    cdef readonly Arena arena
    cdef Checks checks
    cdef readonly object dtype          # of events, answers and State.numbers
    cdef readonly object largest_event  # [inputs]: within it every number stays finite
    cdef readonly bint closed
    cdef unsigned int forks
    cdef cython.pythread_type_lock lock
    cdef bint away              # a step is under way without the GIL
    cdef char** rows            # row pointers of the micro-batch under way
    cdef Py_ssize_t rows_room

    cdef int check_usable(self) except -1
    cdef cnp.ndarray events(self, object x, int ndim)
    cdef int check_finite(self, cnp.ndarray x) except -1
    cdef void copy_out(self, const char* row, void* numbers) noexcept
    cdef Py_ssize_t apply(
        self, const uint32_t* rows, const uint32_t* epochs, Py_ssize_t n, Py_ssize_t steps,
        const void* x, void* y,
    ) except -2
    cdef Py_ssize_t apply_owned(
        self, const uint32_t* rows, const uint32_t* epochs, Py_ssize_t n, Py_ssize_t steps,
        const void* x, void* y, bint release,
    ) except -2
    cdef Py_ssize_t find_rows(
        self, const uint32_t* rows, const uint32_t* epochs, Py_ssize_t n,
    ) except -2
    cdef void run(self, Py_ssize_t n, Py_ssize_t steps, const void* x, void* y) noexcept nogil
    cdef int raise_refusal(self, Py_ssize_t at, const double* x) except -1
    cdef object forecast(
        self, const uint32_t* rows, const uint32_t* epochs, Py_ssize_t n, steps,
    )
    cdef Py_ssize_t forecast_owned(
        self, const uint32_t* rows, const uint32_t* epochs, Py_ssize_t n, Py_ssize_t steps,
        char* copies, double* out,
    ) except -2
