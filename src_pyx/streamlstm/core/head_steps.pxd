"""Micro-batches of readings through head and network; see head_steps.pyx."""
from streamlstm.core.head cimport CompiledHead, Take
from streamlstm.core.network cimport Network
from streamlstm.core.threads cimport Threads


cdef class HeadSteps:
    cdef readonly CompiledHead compiled
    cdef Network network
    cdef Threads threads
    cdef readonly bytes initial_row     # of the network's state, then the head's
    cdef readonly Py_ssize_t state_size  # numbers of both
    cdef readonly bint refuses          # whether a policy refuses any reading
    cdef Py_ssize_t offset              # bytes of a row before the head's numbers
    cdef Py_ssize_t row_bytes
    cdef Py_ssize_t room                # rows that the scratch below is for
    cdef Take* takes                    # [room]
    cdef char** stepped                 # [room]: rows of a pass
    cdef Py_ssize_t* members            # [room]: whose they are
    cdef char* x                        # [room, network inputs]
    cdef char* y                        # [room, network outputs]

    cdef int reserve(self, Py_ssize_t n) except -1
    cdef inline double* state(self, char* row) noexcept nogil
    cdef Py_ssize_t first_refused(
        self, char** rows, Py_ssize_t n, Py_ssize_t steps, const double* x) noexcept nogil
    cdef void run(
        self, char** rows, Py_ssize_t n, Py_ssize_t steps, const double* x, double* y,
    ) noexcept nogil
    cdef void step(self, char** rows, Py_ssize_t n) noexcept nogil
    cdef void network_step(self, Py_ssize_t m) noexcept nogil
    cdef int fork(self, char** rows, Py_ssize_t n, char* to, Py_ssize_t stride) except -1
    cdef void forecast(
        self, char** forks, Py_ssize_t n, Py_ssize_t steps, double* out) noexcept nogil
    cdef void read_row(self, const char* row, double* numbers) noexcept nogil
    cdef void write_row(self, char* row, const double* numbers) noexcept nogil
