"""Cell equations by BLAS; see _cells_blas.pyx."""
from cython cimport floating

ctypedef enum LayerKind:
    LSTM_LAYER
    DENSE_LAYER

ctypedef enum Activation:
    LINEAR
    TANH
    SIGMOID
    RELU

ctypedef struct Layer:
    LayerKind kind
    Activation activation   # dense only
    int inputs
    int units               # its outputs: H of an LSTM layer, O of a dense one
    Py_ssize_t h, c         # where an LSTM layer's h and c stand in a row, in numbers
    void* w_x               # [inputs, 4 units] or, dense, [inputs, units]
    void* w_h               # [units, 4 units]
    void* b                 # [4 units] or [units]


cdef void lstm_layer(
    const Layer* layer, Py_ssize_t n, Py_ssize_t steps, char** rows,
    const floating* x, floating* h_start, floating* z, floating* out,
) noexcept nogil

cdef void dense_layer(
    const Layer* layer, Py_ssize_t n, const floating* x, floating* out,
) noexcept nogil
