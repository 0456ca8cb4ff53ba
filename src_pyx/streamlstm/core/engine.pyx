"""State rows and their steps: the compiled half of engine.py.

A call goes: check the arrays (checks.pyx; no lock) -> take the engine's lock -> check that
every row is still owned by its caller's epoch -> run the network over the rows -> advance
seq -> release. Nothing is changed before everything has been checked.

An engine has one owner at a time. Work of more than RELEASE_MACS multiply-adds gives up
the GIL while it runs, and holds the lock; a second thread waits for that without the GIL.
What is smaller keeps the GIL, and needs no lock while nobody is `away`.
"""
cimport numpy as cnp
from libc.stdint cimport int64_t, uint32_t
from libc.stdlib cimport free, realloc
from libc.string cimport memcpy

import os

import numpy as np

from streamlstm.core.arena cimport Arena
from streamlstm.core.checks cimport Checks
from streamlstm.core.head cimport CompiledHead
from streamlstm.core.head_steps cimport HeadSteps
from streamlstm.core.network cimport Network
from streamlstm.core.threads cimport Threads
from streamlstm.kernels.kernel cimport prefetch

from streamlstm.errors import EngineClosedError, ForkedProcessError
from streamlstm.kernels.pack import aligned

cnp.import_array()

# About 5 us of work; giving up the GIL and taking it back costs a good part of one.
cdef Py_ssize_t RELEASE_MACS = 100_000

# About 1 ms of work: worth what it costs to hold BLAS to one thread around it.
cdef Py_ssize_t LONG_CALL_MACS = 20_000_000

# Rows worth fetching ahead of a step: what the second-level cache can hold.
cdef Py_ssize_t FETCH_BYTES = 512 << 10

# What apply_owned returns, less the event's number, where a policy refuses it.
cdef Py_ssize_t REFUSED = -3

cdef unsigned int forks = 0


def note_fork():
    global forks
    forks += 1


os.register_at_fork(after_in_child=note_fork)


cdef class EngineCore:
    """State rows of the sessions of one model, and the network that steps them."""

    def __cinit__(
        self, Network network not None, Py_ssize_t max_sessions, int threads, largest_event,
        Py_ssize_t vocabulary, CompiledHead head=None,
    ):
        cdef str dtype = network.row.numbers
        cdef int timed = -1
        self.network = network
        self.threads = Threads(network, threads)
        self.inputs, self.outputs = network.plan.inputs, network.plan.outputs
        self.state_size, initial = network.state_size, network.initial_state
        if head is not None:
            self.head_steps = HeadSteps(head, network, self.threads)
            self.inputs, self.outputs = head.rules.readings, head.rules.outputs
            self.state_size, initial = self.head_steps.state_size, self.head_steps.initial_row
            dtype, timed = "float64", head.rules.timed
        self.checks = Checks(dtype, largest_event, vocabulary, timed)
        self.dtype, self.largest_event = self.checks.dtype, self.checks.largest_event
        self.arena = Arena(initial, max_sessions)
        self.forks = forks

    def __dealloc__(self):
        free(self.rows)

    cdef int check_usable(self) except -1:
        if self.forks != forks:
            raise ForkedProcessError(
                "this engine was created before os.fork and can't be used in the child; "
                "create an Engine in each process")
        if self.closed:
            raise EngineClosedError("this engine is closed; create a new Engine")
        return 0

    cdef cnp.ndarray events(self, object x, int ndim):
        """x as an array whose last axis is the inputs: itself, or converted, or refused."""
        if not self.checks.fits(x, ndim):
            x = self.convert(x, ndim)
        self.check_finite(x)
        return x

    cdef int check_finite(self, cnp.ndarray x) except -1:
        if not self.checks.all_fine(x):
            raise self.unacceptable(x)
        return 0

    def _ensure_usable(self):
        """Raises EngineClosedError, ForkedProcessError."""
        self.check_usable()

    @property
    def forked(self):
        """Whether this is a child process of the one that created the engine."""
        return self.forks != forks

    # -- rows -------------------------------------------------------------------------
    # No tuple is made under the lock: that may run the garbage collector, and it a
    # finalizer that wants the lock.

    def _open_row(self):
        """(row, epoch) of a fresh state row, or None when all are in use."""
        self.check_usable()
        cdef Py_ssize_t row
        cdef uint32_t epoch
        with self.lock:
            row = self.arena.open()
            if row < 0:
                return None
            epoch = self.arena.epoch[row]
        return row, epoch

    def _free_row(self, uint32_t row, uint32_t epoch):
        """Free a row; False when `epoch` does not own it."""
        self.check_usable()
        with self.lock:
            if not self.arena.owns(row, epoch):
                return False
            self.arena.close(row)
            return True

    def _next_epoch(self, uint32_t row, uint32_t epoch):
        """Give a row to a new owner: its new epoch, or None when `epoch` does not own it."""
        self.check_usable()
        with self.lock:
            if not self.arena.owns(row, epoch):
                return None
            self.arena.epoch[row] += 1
            return self.arena.epoch[row]

    def _read_row(self, uint32_t row, uint32_t epoch):
        """(numbers [state_size], seq) of a row, copied; None when `epoch` does not own it."""
        self.check_usable()
        numbers = np.empty(self.state_size, self.dtype)
        cdef void* to = cnp.PyArray_DATA(numbers)
        cdef int64_t seq
        with self.lock:
            if not self.arena.owns(row, epoch):
                return None
            self.copy_out(self.arena.row(row), to)
            seq = self.arena.seq[row]
        return numbers, seq

    def _write_row(
        self, uint32_t row, uint32_t epoch, cnp.ndarray numbers=None, int64_t seq=-1,
    ):
        """Overwrite a row's numbers (None: as opened), a change like an event unless seq says
        which one it was; False when not owned."""
        self.check_usable()
        if numbers is not None:
            if not self.checks.is_exact(numbers, -1, self.state_size, False):
                self.checks.refuse_inexact(numbers, "state", (self.state_size,), False)
        with self.lock:
            if not self.arena.owns(row, epoch):
                return False
            if numbers is None:
                memcpy(self.arena.row(row), self.arena.initial, self.arena.row_bytes)
            elif self.head_steps is None:
                memcpy(self.arena.row(row), cnp.PyArray_DATA(numbers), self.arena.row_bytes)
            else:
                self.head_steps.write_row(
                    self.arena.row(row), <const double*> cnp.PyArray_DATA(numbers))
            self.arena.seq[row] = seq if seq >= 0 else self.arena.seq[row] + 1
            return True

    cdef void copy_out(self, const char* row, void* numbers) noexcept:
        if self.head_steps is None:
            memcpy(numbers, row, self.arena.row_bytes)
        else:
            self.head_steps.read_row(row, <double*> numbers)

    def _close_core(self):
        """Refuse all further work and give the state back to the system."""
        with self.lock:
            self.closed = True
            self.arena.release()
            self.threads.stop()

    # -- steps ------------------------------------------------------------------------

    cdef Py_ssize_t apply(
        self, const uint32_t* rows, const uint32_t* epochs, Py_ssize_t n, Py_ssize_t steps,
        const void* x, void* y,
    ) except -2:
        """x [n, steps, inputs] -> y [n, steps, outputs]; -1, or who is not owned any more."""
        self.check_usable()
        cdef Py_ssize_t macs = n * steps * self.network.macs, done = -1
        if macs <= RELEASE_MACS and not self.away:
            # Nobody else gets in while the GIL is held: the lock would only cost.
            done = self.apply_owned(rows, epochs, n, steps, x, y, False)
        elif macs > LONG_CALL_MACS and self.network.plan.kernel.own_threads:
            with self.long_call(), self.lock:
                done = self.apply_owned(rows, epochs, n, steps, x, y, True)
        else:
            with self.lock:
                done = self.apply_owned(rows, epochs, n, steps, x, y, macs > RELEASE_MACS)
        if done <= REFUSED:
            self.raise_refusal(REFUSED - done, <const double*> x)
        return done

    cdef Py_ssize_t apply_owned(
        self, const uint32_t* rows, const uint32_t* epochs, Py_ssize_t n, Py_ssize_t steps,
        const void* x, void* y, bint release,
    ) except -2:
        """As apply; REFUSED - i where a policy refuses event i."""
        cdef Py_ssize_t i = self.find_rows(rows, epochs, n)
        if i >= 0:
            return i
        if self.head_steps is not None:
            self.head_steps.reserve(n)
            if self.head_steps.refuses:
                i = self.head_steps.first_refused(self.rows, n, steps, <const double*> x)
                if i >= 0:
                    return REFUSED - i
        if release:
            self.away = True
            with nogil:
                self.run(n, steps, x, y)
            self.away = False
        else:
            self.run(n, steps, x, y)
        for i in range(n):
            self.arena.seq[rows[i]] += steps
        return -1

    cdef Py_ssize_t find_rows(
        self, const uint32_t* rows, const uint32_t* epochs, Py_ssize_t n,
    ) except -2:
        """Let `rows` be where n sessions' states stand; -1, or who is not owned any more."""
        cdef Py_ssize_t i, k
        # Rows of a large arena come from memory: all misses at once, not one by one.
        cdef bint fetch = n > 1 and n * self.arena.row_bytes <= FETCH_BYTES
        cdef void* p
        if self.rows_room < n:
            p = realloc(self.rows, n * sizeof(char*))
            if not p:
                raise MemoryError("no memory for a micro-batch of this size")
            self.rows = <char**> p
            self.rows_room = n
        for i in range(n):
            if not self.arena.owns(rows[i], epochs[i]):
                return i
            self.rows[i] = self.arena.row(rows[i])
            if fetch:
                for k in range(0, self.arena.row_bytes, 64):
                    prefetch(self.rows[i] + k)
        return -1

    cdef void run(self, Py_ssize_t n, Py_ssize_t steps, const void* x, void* y) noexcept nogil:
        """x through the sessions of find_rows."""
        if self.head_steps is None:
            self.threads.run(self.rows, n, steps, x, y)
        else:
            self.head_steps.run(self.rows, n, steps, <const double*> x, <double*> y)

    cdef int raise_refusal(self, Py_ssize_t at, const double* x) except -1:
        self.head_steps.compiled.refused += 1
        raise self.refusal(at, [x[at * self.inputs + j] for j in range(self.inputs)])

    # -- forecasts --------------------------------------------------------------------

    cdef object forecast(
        self, const uint32_t* rows, const uint32_t* epochs, Py_ssize_t n, steps,
    ):
        """[n, steps, quantiles], or who is not owned any more."""
        self.check_usable()
        cdef Py_ssize_t ahead = self.check_ahead(steps), lost = -1
        # No Python from here to the last copy: other threads would step meanwhile.
        cdef cnp.ndarray copies = aligned((n, self.arena.stride // sizeof(float)))
        cdef cnp.ndarray out = np.empty((n, ahead, self.head_steps.compiled.rules.quantiles))
        cdef char* at = cnp.PyArray_BYTES(copies)
        cdef double* to = <double*> cnp.PyArray_DATA(out)
        if self.network.plan.kernel.own_threads:
            with self.long_call(), self.lock:
                lost = self.forecast_owned(rows, epochs, n, ahead, at, to)
        else:
            with self.lock:
                lost = self.forecast_owned(rows, epochs, n, ahead, at, to)
        return out if lost < 0 else lost

    cdef Py_ssize_t forecast_owned(
        self, const uint32_t* rows, const uint32_t* epochs, Py_ssize_t n, Py_ssize_t steps,
        char* copies, double* out,
    ) except -2:
        cdef Py_ssize_t i = self.find_rows(rows, epochs, n)
        if i >= 0:
            return i
        self.head_steps.fork(self.rows, n, copies, self.arena.stride)
        self.away = True
        with nogil:
            self.head_steps.forecast(self.rows, n, steps, out)
        self.away = False
        return -1

    def count_refused(self):
        """Count a reading that a policy refuses and that is therefore not stepped."""
        self.head_steps.compiled.refused += 1

    def _totals(self):
        return {} if self.head_steps is None else self.head_steps.compiled.totals()

    @property
    def state_bytes(self):
        """Bytes of memory mapped for session states."""
        return self.arena.nbytes
