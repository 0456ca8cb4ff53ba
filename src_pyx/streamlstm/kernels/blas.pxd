"""Cell equations by BLAS; see blas.pyx."""
from cython cimport floating

from streamlstm.kernels.table cimport Layer


cdef void recurrent_layer(
    const Layer* layer, Py_ssize_t n, Py_ssize_t steps, char** rows,
    const floating* x, floating* h_start, floating* z, floating* m, floating* out,
) noexcept nogil

cdef void dense_layer(
    const Layer* layer, Py_ssize_t n, const floating* x, floating* out,
) noexcept nogil

cdef void activate(
    int function, Py_ssize_t n, Py_ssize_t units, const floating* x, floating* out,
) noexcept nogil
