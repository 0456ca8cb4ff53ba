"""What an engine's callers may give it: the checks of arrays, without a lock.

*_into calls take an array as it is or refuse it; the others may convert it first.
"""
cimport numpy as cnp
from cython cimport floating

import numpy as np

from streamlstm.errors import DtypeError, InputError, ShapeError

cnp.import_array()

# Numbers whose check is worth giving up the GIL for: about 10 us.
cdef Py_ssize_t RELEASE_CHECK = 100_000


cdef bint all_within(
    const floating* x, Py_ssize_t n, const floating* largest, Py_ssize_t width,
) noexcept nogil:
    """Whether each of x [n, width] is within +-largest [width]; NaN never is."""
    cdef Py_ssize_t _i, j
    cdef int bad = 0
    for _i in range(n):
        for j in range(width):
            bad |= not (-largest[j] <= x[j] <= largest[j])
        x += width
    return not bad


cdef bint within_or_missing(
    const double* x, Py_ssize_t n, const double* largest, Py_ssize_t width, bint timed,
) noexcept nogil:
    """all_within of readings: NaN is a missing value, but no time."""
    cdef Py_ssize_t _i, j
    cdef int bad = 0
    for _i in range(n):
        if timed:
            bad |= not (-largest[0] <= x[0] <= largest[0])
        for j in range(timed, width):
            bad |= x[j] > largest[j] or x[j] < -largest[j]
        x += width
    return not bad


cdef bint all_whole(const floating* x, Py_ssize_t n) noexcept nogil:
    """Whether each of x [n], which are no larger than a vocabulary, is 0 or a whole number."""
    cdef Py_ssize_t i
    cdef int bad = 0
    for i in range(n):
        bad |= not (x[i] >= 0 and x[i] == <floating> <Py_ssize_t> x[i])
    return not bad


cdef class Checks:
    """Of events of one engine, [.., width], and of the arrays for its answers.

    largest: [width], within which every number stays finite. vocabulary: of an embedding that takes
    the events, else 0. timed: whether a head's readings begin with a time, -1 without a head.
    """

    def __cinit__(self, dtype, largest, Py_ssize_t vocabulary, int timed):
        self.dtype = np.dtype(dtype)
        self.typenum = cnp.NPY_FLOAT32 if self.dtype == np.float32 else cnp.NPY_FLOAT64
        self.largest_event = np.array(largest, self.dtype)
        self.largest_event.flags.writeable = False
        self.largest = cnp.PyArray_DATA(self.largest_event)
        self.width = len(self.largest_event)
        self.vocabulary = vocabulary
        self.timed = timed

    cdef bint fits(self, object x, int ndim) noexcept:
        """Whether x can be read in place: right dtype, dimensions, C order, last axis."""
        return (cnp.PyArray_Check(x) and cnp.PyArray_TYPE(<cnp.ndarray> x) == self.typenum
                and cnp.PyArray_ISCARRAY_RO(<cnp.ndarray> x)
                and cnp.PyArray_NDIM(<cnp.ndarray> x) == ndim
                and cnp.PyArray_DIM(<cnp.ndarray> x, ndim - 1) == self.width)

    cdef bint all_fine(self, cnp.ndarray x) noexcept:
        """Whether every number of x [.., width] can be taken."""
        cdef Py_ssize_t n = cnp.PyArray_SIZE(x) // self.width
        cdef void* data = cnp.PyArray_DATA(x)
        cdef bint fine
        if n * self.width > RELEASE_CHECK:
            with nogil:
                fine = self.all_within(data, n)
        else:
            fine = self.all_within(data, n)
        return fine

    cdef bint all_within(self, const void* x, Py_ssize_t n) noexcept nogil:
        cdef bint fine
        if self.timed >= 0:
            return within_or_missing(
                <const double*> x, n, <const double*> self.largest, self.width, self.timed)
        if self.typenum == cnp.NPY_FLOAT32:
            fine = all_within(<const float*> x, n, <const float*> self.largest, self.width)
            return fine and (not self.vocabulary or all_whole(<const float*> x, n))
        fine = all_within(<const double*> x, n, <const double*> self.largest, self.width)
        return fine and (not self.vocabulary or all_whole(<const double*> x, n))

    cdef bint is_exact(self, object a, Py_ssize_t n, Py_ssize_t width, bint written) noexcept:
        """What *_into calls ask, without allocating: shape [n, width], or [width] for n < 0."""
        cdef int last = n >= 0
        return (cnp.PyArray_Check(a) and cnp.PyArray_TYPE(<cnp.ndarray> a) == self.typenum
                and (cnp.PyArray_ISCARRAY(<cnp.ndarray> a) if written
                     else cnp.PyArray_ISCARRAY_RO(<cnp.ndarray> a))
                and cnp.PyArray_NDIM(<cnp.ndarray> a) == last + 1
                and cnp.PyArray_DIM(<cnp.ndarray> a, last) == width
                and (n < 0 or cnp.PyArray_DIM(<cnp.ndarray> a, 0) == n))

    cdef int refuse_inexact(self, object a, str name, tuple shape, bint written) except -1:
        """Raise what is_exact found wrong: *_into calls convert nothing."""
        if isinstance(a, np.ndarray) and a.dtype == self.dtype and a.shape != shape:
            raise ShapeError(f"{name} has shape {a.shape}; expected {shape}")
        raise DtypeError(
            f"{name} must be a C-contiguous{' writable' if written else ''} {self.dtype} "
            f"array; got {a.dtype if isinstance(a, np.ndarray) else type(a).__name__}: "
            "convert it once outside the loop, or call step()")

    cdef int check_apart(self, cnp.ndarray x, cnp.ndarray out) except -1:
        cdef char* a = cnp.PyArray_BYTES(x)
        cdef char* b = cnp.PyArray_BYTES(out)
        if a < b + cnp.PyArray_NBYTES(out) and b < a + cnp.PyArray_NBYTES(x):
            raise InputError("out overlaps the input in memory; give an array of its own")
        return 0

    cdef cnp.ndarray answers(self, object out, cnp.ndarray events, tuple shape):
        """Where a run's answers go: a fresh array, or `out` if it is fit for them."""
        if out is None:
            return np.empty(shape, self.dtype)
        if not (isinstance(out, np.ndarray) and out.dtype == self.dtype and out.shape == shape
                and cnp.PyArray_ISCARRAY(<cnp.ndarray> out)):
            self.refuse_inexact(out, "out", shape, True)
        self.check_apart(events, out)
        return out
