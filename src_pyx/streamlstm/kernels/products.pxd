"""Row-major products through SciPy's BLAS: the only file that names BLAS.

BLAS is column-major, and a row-major [m, n] matrix read column-major is its
transpose; so C = A B is asked for as C' = B' A', without moving a number.
SciPy's declarations lack const, and take their integers as int: both are cast here.
"""
from cython cimport floating
from scipy.linalg.cython_blas cimport dgemm, dgemv, sgemm, sgemv


cdef inline void gemm(
    int m, int n, int k,
    const floating* a, int lda, const floating* b, int ldb,
    floating beta, floating* c, int ldc,
) noexcept nogil:
    """C[m, n] = A[m, k] B[k, n] + beta C."""
    cdef floating one = 1
    cdef char no = b"n"
    if floating is float:
        sgemm(&no, &no, &n, &m, &k, &one, <float*> b, &ldb, <float*> a, &lda, &beta, c, &ldc)
    else:
        dgemm(&no, &no, &n, &m, &k, &one, <double*> b, &ldb, <double*> a, &lda, &beta, c, &ldc)


cdef inline void gemv(
    int n, int k, const floating* x, const floating* b, int ldb, floating beta, floating* y,
) noexcept nogil:
    """y[n] = x[k] B[k, n] + beta y: gemm for m = 1, without packing B."""
    cdef floating one = 1
    cdef char no = b"n"
    cdef int inc = 1
    if floating is float:
        sgemv(&no, &n, &k, &one, <float*> b, &ldb, <float*> x, &inc, &beta, y, &inc)
    else:
        dgemv(&no, &n, &k, &one, <double*> b, &ldb, <double*> x, &inc, &beta, y, &inc)
