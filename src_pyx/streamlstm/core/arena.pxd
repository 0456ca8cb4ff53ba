"""State rows; see arena.pyx."""
from libc.stdint cimport int64_t, uint32_t


cdef class Arena:
    cdef readonly Py_ssize_t row_bytes      # of a row's numbers, as asked for
    cdef readonly Py_ssize_t max_rows
    cdef readonly Py_ssize_t live
    cdef readonly Py_ssize_t slab_count     # slabs mapped just now
    cdef Py_ssize_t stride                  # row_bytes up to a whole cache line
    cdef int shift                          # log2 of the rows in a slab
    cdef Py_ssize_t slab_bytes
    cdef Py_ssize_t slabs_max
    cdef Py_ssize_t first_open_slab         # no slab below has a free row
    cdef char** slabs                       # NULL where none is mapped
    cdef uint32_t* slab_live
    cdef uint32_t* slab_free                # first free row of each slab, or NO_ROW
    cdef uint32_t first_epoch
    cdef Py_ssize_t spare                   # a mapped slab without live rows, or -1
    cdef Py_ssize_t capacity                # rows that the arrays below cover
    cdef uint32_t* next_free
    cdef uint32_t* mark                     # last `stamp` a row was seen under
    cdef uint32_t stamp
    cdef int64_t* seq                       # events applied; -1: the row is free
    cdef uint32_t* epoch                    # changes whenever the owner of a row does
    cdef char* initial                      # what an opened row starts as

    cdef inline char* row(self, uint32_t row) noexcept nogil:
        return self.slabs[row >> self.shift] + (row & ((1 << self.shift) - 1)) * self.stride

    cdef inline bint owns(self, Py_ssize_t row, uint32_t epoch) noexcept nogil:
        """Whether `row` is live and its owner is the one that was given `epoch`."""
        return row < self.capacity and self.epoch[row] == epoch and self.seq[row] >= 0

    cdef int cover(self, Py_ssize_t capacity) except -1
    cdef int unmap_slab(self, Py_ssize_t s) noexcept
    cdef int map_slab(self, Py_ssize_t s) except -1
    cdef Py_ssize_t open(self) except -2
    cdef void release(self) noexcept
    cdef int close(self, uint32_t row) except -1
    cdef Py_ssize_t first_repeated(self, const uint32_t* rows, Py_ssize_t n) noexcept nogil
