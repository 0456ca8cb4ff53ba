"""State rows: one session's numbers (h and c of all layers) are one aligned row.

Rows stand in slabs of 1 MiB mapped from the system one by one, so that growing never
moves a live row and an emptied slab goes back at once. Beside the rows stand flat
arrays of what a batch is checked by: seq, epoch, and the mark that finds a row twice.

A row's life: open() copies `initial` over it (nothing of an earlier owner is left),
sets seq 0 and a new epoch; close() sets seq -1 and a new epoch. (row, epoch) therefore
names one ownership for ever (epochs wrap after 2^32 changes of one row). Epochs start at
a random number, so that what a client kept of an earlier process owns nothing here.
The caller holds the engine's lock; nothing here takes one.
"""
import os

from libc.stdint cimport int64_t, uint32_t
from libc.stdlib cimport calloc, free, realloc
from libc.string cimport memcpy, memset
from posix.mman cimport (
    MAP_ANONYMOUS, MAP_FAILED, MAP_PRIVATE, PROT_READ, PROT_WRITE, mmap, munmap,
)

# Under AddressSanitizer only the numbers of live rows may be touched.
cdef extern from *:
    """
    #ifdef __SANITIZE_ADDRESS__
    #include <sanitizer/asan_interface.h>
    #else
    #define ASAN_POISON_MEMORY_REGION(at, bytes) ((void)(at), (void)(bytes))
    #define ASAN_UNPOISON_MEMORY_REGION(at, bytes) ((void)(at), (void)(bytes))
    #endif
    """
    void forbid "ASAN_POISON_MEMORY_REGION" (const void* at, size_t bytes) nogil
    void permit "ASAN_UNPOISON_MEMORY_REGION" (const void* at, size_t bytes) nogil

cdef Py_ssize_t SLAB_BYTES = 1 << 20
cdef Py_ssize_t CACHE_LINE = 64
cdef uint32_t NO_ROW = 0xFFFFFFFF


cdef class Arena:
    """At most `max_rows` rows of len(initial) bytes, each opened as a copy of `initial`."""

    def __cinit__(self, bytes initial, Py_ssize_t max_rows):
        self.row_bytes = len(initial)
        self.max_rows = max_rows
        self.first_epoch = int.from_bytes(os.urandom(4), "little") >> 1
        self.spare = -1
        self.stride = max(self.row_bytes + CACHE_LINE - 1, CACHE_LINE) // CACHE_LINE * CACHE_LINE
        while (self.stride << (self.shift + 1)) <= SLAB_BYTES:
            self.shift += 1
        self.slab_bytes = self.stride << self.shift
        self.slabs_max = ((max_rows - 1) >> self.shift) + 1
        self.slabs = <char**> calloc(self.slabs_max, sizeof(char*))
        self.slab_live = <uint32_t*> calloc(self.slabs_max, sizeof(uint32_t))
        self.slab_free = <uint32_t*> calloc(self.slabs_max, sizeof(uint32_t))
        self.initial = <char*> calloc(1, max(self.row_bytes, 1))
        if not (self.slabs and self.slab_live and self.slab_free and self.initial):
            raise MemoryError("no memory for the table of state slabs")
        memcpy(self.initial, <const char*> initial, self.row_bytes)

    def __dealloc__(self):
        if self.slabs:
            self.release()
        free(self.slabs)
        free(self.slab_live)
        free(self.slab_free)
        free(self.initial)
        free(self.next_free)
        free(self.mark)
        free(self.seq)
        free(self.epoch)

    cdef void release(self) noexcept:
        """Unmap every slab; nobody owns a row after it. The arrays stay readable."""
        cdef Py_ssize_t s, r
        for r in range(self.capacity):
            self.seq[r] = -1
        for s in range(self.slabs_max):
            if self.slabs[s]:
                self.unmap_slab(s)
        self.live = 0
        self.spare = -1

    cdef int cover(self, Py_ssize_t capacity) except -1:
        """Let the arrays beside the rows cover `capacity` rows."""
        cdef Py_ssize_t old = self.capacity, r
        cdef void* p
        if capacity <= old:
            return 0
        # A failed realloc leaves its array as it was, so the arena stays whole.
        p = realloc(self.next_free, capacity * sizeof(uint32_t))
        if not p:
            raise MemoryError("no memory for more sessions")
        self.next_free = <uint32_t*> p
        p = realloc(self.mark, capacity * sizeof(uint32_t))
        if not p:
            raise MemoryError("no memory for more sessions")
        self.mark = <uint32_t*> p
        p = realloc(self.epoch, capacity * sizeof(uint32_t))
        if not p:
            raise MemoryError("no memory for more sessions")
        self.epoch = <uint32_t*> p
        p = realloc(self.seq, capacity * sizeof(int64_t))
        if not p:
            raise MemoryError("no memory for more sessions")
        self.seq = <int64_t*> p
        for r in range(old, capacity):
            self.mark[r] = 0
            self.epoch[r] = self.first_epoch
            self.seq[r] = -1
        self.capacity = capacity
        return 0

    cdef int map_slab(self, Py_ssize_t s) except -1:
        cdef Py_ssize_t first = s << self.shift, r
        cdef Py_ssize_t last = min(first + (1 << self.shift), self.max_rows) - 1
        cdef void* p
        self.cover(last + 1)
        p = mmap(NULL, self.slab_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
        if p == MAP_FAILED:
            raise MemoryError(f"no memory for {self.slab_bytes} more bytes of session state")
        forbid(p, self.slab_bytes)
        self.slabs[s] = <char*> p
        self.slab_count += 1
        for r in range(first, last):
            self.next_free[r] = r + 1
        self.next_free[last] = NO_ROW
        self.slab_free[s] = first
        return 0

    cdef Py_ssize_t open(self) except -2:
        """A row in its initial state, seq 0, in a new epoch; -1 when all are live."""
        cdef Py_ssize_t s = self.first_open_slab
        cdef uint32_t row
        # The lowest slab with room is filled first, so that high slabs can empty.
        while s < self.slabs_max and self.slabs[s] and self.slab_free[s] == NO_ROW:
            s += 1
        self.first_open_slab = s
        if s == self.slabs_max:
            return -1
        if not self.slabs[s]:
            self.map_slab(s)
        if s == self.spare:
            self.spare = -1
        row = self.slab_free[s]
        self.slab_free[s] = self.next_free[row]
        self.slab_live[s] += 1
        self.live += 1
        permit(self.row(row), self.row_bytes)
        memcpy(self.row(row), self.initial, self.row_bytes)
        self.epoch[row] += 1
        self.seq[row] = 0
        return row

    cdef int close(self, uint32_t row) except -1:
        """Give `row` back, and an empty slab to the system; the lowest empty one stays, so that
        sessions that come and go at a slab's edge map nothing."""
        cdef Py_ssize_t s = row >> self.shift
        forbid(self.row(row), self.row_bytes)
        self.epoch[row] += 1
        self.seq[row] = -1
        self.live -= 1
        self.slab_live[s] -= 1
        self.first_open_slab = min(self.first_open_slab, s)
        self.next_free[row] = self.slab_free[s]
        self.slab_free[s] = row
        if self.slab_live[s] == 0:
            if self.spare >= 0:
                self.unmap_slab(max(s, self.spare))
                s = min(s, self.spare)
            self.spare = s
        return 0

    cdef int unmap_slab(self, Py_ssize_t s) noexcept:
        permit(self.slabs[s], self.slab_bytes)  # whatever is mapped there next
        munmap(self.slabs[s], self.slab_bytes)
        self.slabs[s] = NULL
        self.slab_count -= 1
        return 0

    cdef Py_ssize_t first_repeated(self, const uint32_t* rows, Py_ssize_t n) noexcept nogil:
        """The place of the first row that stands in `rows` before, or -1. One pass."""
        cdef Py_ssize_t i
        self.stamp += 1
        if self.stamp == 0:  # wrapped: old marks would match
            memset(self.mark, 0, self.capacity * sizeof(uint32_t))
            self.stamp = 1
        for i in range(n):
            if self.mark[rows[i]] == self.stamp:
                return i
            self.mark[rows[i]] = self.stamp
        return -1

    @property
    def nbytes(self):
        """Bytes of the slabs that are mapped."""
        return self.slab_count * self.slab_bytes
