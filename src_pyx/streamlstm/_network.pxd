"""A model's weights, ready to run; see _network.pyx."""
from cython cimport floating

from streamlstm._cells_blas cimport Layer


cdef class Network:
    cdef readonly int itemsize              # bytes of a number: 4 or 8
    cdef readonly Py_ssize_t inputs, outputs
    cdef readonly Py_ssize_t state_size     # numbers in a session's row
    cdef readonly Py_ssize_t macs           # multiply-adds of one step of one stream
    cdef readonly bytes initial_state
    cdef list owned                         # keeps the arrays behind the pointers alive
    cdef Layer* layers
    cdef int layer_count
    cdef Py_ssize_t width, gates_width      # widest activation and gate vectors
    cdef Py_ssize_t block                   # (stream, step) pairs in a block of work
    cdef void* x_mean
    cdef void* x_scale                      # 1 / std
    cdef void* y_mean
    cdef void* y_scale                      # std
    cdef void* work

    cdef void* own(self, array, dtype) except NULL
    cdef void forward(
        self, char** rows, Py_ssize_t n, Py_ssize_t steps, const void* x, void* y,
    ) noexcept nogil
