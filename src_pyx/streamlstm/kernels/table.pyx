"""The table of kernels: one row each.

kernel.h says what a row is and how its weights lie; fused.h is the one source of the fused float32
kernels, built once per target by avx512.c, avx2.c and portable.c. A new target or weight format is
a file with its row, and a line here.
"""
import numpy as np

from streamlstm.kernels.blas cimport blas_float32, blas_float64
from streamlstm.kernels.kernel cimport (
    FLOAT32, Kernel, float_mode, flush_denormals, restore_float_mode,
)

from streamlstm.layers import FUNCTIONS

cdef extern from *:
    """
    #include "kernel.h"
    extern const Kernel streamlstm_avx512, streamlstm_avx2, streamlstm_portable;
    """
    const Kernel streamlstm_avx512, streamlstm_avx2, streamlstm_portable


cdef class Row:
    """A kernel: its name, arithmetic class, weight format, type of numbers."""


cdef Row row(const Kernel* kernel):
    cdef Row self = Row.__new__(Row)
    self.kernel = kernel
    self.name, self.arithmetic = kernel.name.decode(), kernel.arithmetic.decode()
    self.weights = kernel.weights.decode()
    self.numbers = "float32" if kernel.numbers == FLOAT32 else "float64"
    self.lanes, self.same_bits = kernel.lanes, kernel.same_bits
    self.supported = kernel.supported()
    return self


# Of one weight format the fastest first: what runs is the first that is supported.
ROWS = (
    row(&streamlstm_avx512),
    row(&streamlstm_avx2),
    row(&streamlstm_portable),
    row(&blas_float32),
    row(&blas_float64),
)


def apply(Row row not None, str function, const float[::1] x):
    """A kernel's own exp, tanh or sigmoid of x [n] -> [n]: what the tests measure."""
    cdef float[::1] y = np.empty(x.shape[0], np.float32)
    cdef float_mode mode
    if not row.kernel.exponential:
        raise ValueError(f"the {row.name} kernel has no functions of its own")
    if x.shape[0]:
        mode = flush_denormals()
        if function == "exp":
            row.kernel.exponential(x.shape[0], &x[0], &y[0])
        else:
            row.kernel.activation(FUNCTIONS.index(function), 1, x.shape[0], &x[0], &y[0])
        restore_float_mode(mode)
    return np.asarray(y)
