"""A model's weights, ready to run; see _network.pyx."""
from cython cimport floating

from streamlstm._cells_blas cimport Layer
from streamlstm._cells_fused cimport fused_kernel, fused_layer


cdef class Network:
    cdef readonly int itemsize              # bytes of a number: 4 or 8
    cdef readonly Py_ssize_t inputs, outputs
    cdef readonly Py_ssize_t state_size     # numbers in a session's row
    cdef readonly Py_ssize_t macs           # multiply-adds of one step of one stream
    cdef readonly bytes initial_state
    cdef readonly str kernel_name           # avx512, avx2, portable or blas
    cdef readonly str arithmetic            # networks of one class give the same bits
    cdef list owned                         # keeps the arrays behind the pointers alive
    cdef const fused_kernel* kernel         # NULL: by BLAS
    cdef Layer* layers
    cdef fused_layer* fused                 # the same layers, packed; NULL: by BLAS
    cdef int layer_count
    cdef Py_ssize_t width, gates_width      # widest activation and gate vectors
    cdef Py_ssize_t block                   # (stream, step) pairs in a block of work
    cdef bint x_scaled, y_scaled            # whether there is anything to scale
    cdef void* x_mean
    cdef void* x_scale                      # 1 / std
    cdef void* y_mean
    cdef void* y_scale                      # std
    cdef void* work

    cdef int add_layer(self, int i, tuple spec, dtype) except -1
    cdef void* own(self, array) except NULL
    cdef void forward(
        self, char** rows, Py_ssize_t n, Py_ssize_t steps, const void* x, void* y,
    ) noexcept nogil
