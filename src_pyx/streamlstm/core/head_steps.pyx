"""Micro-batches of readings: the head's code around the network's, over the sessions' rows.

A row is the network's numbers, then (aligned) the head's in float64. A reading that fills a gap
makes several steps, another none: so the network runs in passes, each over the sessions that have
a step left. The caller holds the engine's lock and has checked everything.
"""
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy

from streamlstm.core.head cimport (
    LATE_REJECT, REJECT, CompiledHead, Rules, Take, absorb, ahead, answer, begin, feed,
    imagine, in_units,
)
from streamlstm.core.head cimport first_refused as refused_at
from streamlstm.core.network cimport Network
from streamlstm.core.threads cimport Threads
from streamlstm.kernels.kernel cimport FLOAT32


cdef class HeadSteps:
    """What an engine steps its sessions with when its model has a head."""

    def __cinit__(self, CompiledHead head not None, Network network not None,
                  Threads threads not None):
        self.compiled, self.network, self.threads = head, network, threads
        start = network.initial_state
        start += bytes(-len(start) % sizeof(double))
        self.offset = len(start)
        self.initial_row = start + bytes(head.state_size * sizeof(double))
        self.row_bytes = len(self.initial_row)
        self.state_size = network.state_size + head.state_size
        self.refuses = head.rules.missing == REJECT or head.rules.late == LATE_REJECT

    def __dealloc__(self):
        free(self.takes)
        free(self.stepped)
        free(self.members)
        free(self.x)
        free(self.y)

    cdef int reserve(self, Py_ssize_t n) except -1:
        """Scratch for a micro-batch of n sessions."""
        if n <= self.room:
            return 0
        free(self.takes)
        free(self.stepped)
        free(self.members)
        free(self.x)
        free(self.y)
        self.room = 0
        self.takes = <Take*> malloc(n * sizeof(Take))
        self.stepped = <char**> malloc(n * sizeof(char*))
        self.members = <Py_ssize_t*> malloc(n * sizeof(Py_ssize_t))
        self.x = <char*> malloc(n * self.network.plan.inputs * self.network.plan.number_bytes)
        self.y = <char*> malloc(n * self.network.plan.outputs * self.network.plan.number_bytes)
        if not (self.takes and self.stepped and self.members and self.x and self.y):
            raise MemoryError("no memory for a micro-batch of this size")
        self.room = n
        return 0

    cdef inline double* state(self, char* row) noexcept nogil:
        return <double*> (row + self.offset)

    cdef Py_ssize_t first_refused(
        self, char** rows, Py_ssize_t n, Py_ssize_t steps, const double* x,
    ) noexcept nogil:
        """Index into x [n * steps, readings] of the first that a policy refuses; -1: none."""
        cdef Py_ssize_t i, at
        for i in range(n):
            at = refused_at(&self.compiled.rules, self.state(rows[i]), x, steps)
            if at >= 0:
                return i * steps + at
            x += steps * self.compiled.rules.readings
        return -1

    cdef void run(
        self, char** rows, Py_ssize_t n, Py_ssize_t steps, const double* x, double* y,
    ) noexcept nogil:
        """x [n, steps, readings] -> y [n, steps, outputs]; scratch for n is reserved."""
        cdef const Rules* p = &self.compiled.rules
        cdef Py_ssize_t i, t, at
        for t in range(steps):
            for i in range(n):
                at = i * steps + t
                begin(p, self.state(rows[i]), x + at * p.readings, &self.takes[i])
            self.step(rows, n)
            for i in range(n):
                at = i * steps + t
                answer(p, self.state(rows[i]), &self.takes[i], y + at * p.outputs)

    cdef void step(self, char** rows, Py_ssize_t n) noexcept nogil:
        """All steps of the takes."""
        cdef const Rules* p = &self.compiled.rules
        cdef Py_ssize_t i, at, m = 1
        cdef Take* take
        cdef double* s
        while m:
            m = 0
            for i in range(n):
                take = &self.takes[i]
                if take.done == take.passes:
                    continue
                s, at = self.state(rows[i]), m * p.network_inputs
                if self.network.plan.kernel.numbers == FLOAT32:
                    feed(p, s, take, <float*> self.x + at)
                else:
                    feed(p, s, take, <double*> self.x + at)
                self.stepped[m], self.members[m] = rows[i], i
                m += 1
            if m:
                self.network_step(m)

    cdef void network_step(self, Py_ssize_t m) noexcept nogil:
        """The first m of `stepped`, from x; what the network says goes into their states."""
        cdef const Rules* p = &self.compiled.rules
        cdef Py_ssize_t j, at
        self.threads.run(self.stepped, m, 1, self.x, self.y)
        for j in range(m):
            at = j * p.network_outputs
            if self.network.plan.kernel.numbers == FLOAT32:
                absorb(p, self.state(self.stepped[j]), <const float*> self.y + at)
            else:
                absorb(p, self.state(self.stepped[j]), <const double*> self.y + at)

    cdef int fork(self, char** rows, Py_ssize_t n, char* to, Py_ssize_t stride) except -1:
        """Let `rows` point to copies of them, in `to`, `stride` bytes apart; reserve for n."""
        cdef Py_ssize_t i
        self.reserve(n)
        for i in range(n):
            memcpy(to, rows[i], self.row_bytes)
            rows[i] = to
            to += stride
        return 0

    cdef void forecast(
        self, char** forks, Py_ssize_t n, Py_ssize_t steps, double* out,
    ) noexcept nogil:
        """out [n, steps, quantiles], in units: direct as far as the horizon goes; beyond it the
        forks are fed what was forecast. They are the caller's to throw away."""
        cdef const Rules* p = &self.compiled.rules
        cdef Py_ssize_t q = p.quantiles, i, k
        cdef double* f
        for k in range(steps):
            if k >= p.horizon:
                for i in range(n):
                    f = out + (i * steps + k - p.horizon) * q
                    self.stepped[i] = forks[i]
                    if self.network.plan.kernel.numbers == FLOAT32:
                        imagine(p, self.state(forks[i]), f[q // 2],
                                <float*> self.x + i * p.network_inputs)
                    else:
                        imagine(p, self.state(forks[i]), f[q // 2],
                                <double*> self.x + i * p.network_inputs)
                self.network_step(n)
            for i in range(n):
                f = out + i * steps * q
                ahead(p, self.state(forks[i]), f, k, f + k * q)
        in_units(p, out, n * steps * q)

    cdef void read_row(self, const char* row, double* numbers) noexcept nogil:
        """A row's numbers [state_size], all as float64: float32 is exact in it."""
        cdef Py_ssize_t i, size = self.network.state_size
        for i in range(size):
            if self.network.plan.kernel.numbers == FLOAT32:
                numbers[i] = (<const float*> row)[i]
            else:
                numbers[i] = (<const double*> row)[i]
        memcpy(numbers + size, row + self.offset, self.compiled.state_size * sizeof(double))

    cdef void write_row(self, char* row, const double* numbers) noexcept nogil:
        """The other way round."""
        cdef Py_ssize_t i, size = self.network.state_size
        for i in range(size):
            if self.network.plan.kernel.numbers == FLOAT32:
                (<float*> row)[i] = <float> numbers[i]
            else:
                (<double*> row)[i] = numbers[i]
        memcpy(row + self.offset, numbers + size, self.compiled.state_size * sizeof(double))
