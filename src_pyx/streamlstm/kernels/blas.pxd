"""The rows that run by BLAS; see blas.pyx."""
from streamlstm.kernels.kernel cimport Kernel

cdef Kernel blas_float32, blas_float64
