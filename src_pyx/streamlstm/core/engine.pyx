"""Sessions and their steps: the compiled half of engine.py.

A call goes: check the arrays (no lock) -> take the engine's lock -> check that every
session is still owned by its handle -> run the network over the state rows -> advance
seq -> release. Nothing is changed before everything has been checked.

An engine has one owner at a time. Work of more than RELEASE_MACS multiply-adds gives up
the GIL while it runs, and holds the lock; a second thread waits for that without the GIL.
What is smaller keeps the GIL, and needs no lock while nobody is `away`.
"""
cimport cython
cimport numpy as cnp
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from cython cimport floating
from libc.stdint cimport int64_t, uint32_t
from libc.stdlib cimport free, realloc
from libc.string cimport memcpy

import os

import numpy as np

from streamlstm.core.arena cimport Arena
from streamlstm.core.head cimport CompiledHead
from streamlstm.core.head_steps cimport HeadSteps
from streamlstm.core.network cimport Network
from streamlstm.core.threads cimport Threads
from streamlstm.kernels.kernel cimport FLOAT32, prefetch

from streamlstm.errors import (
    DtypeError, EngineClosedError, ForkedProcessError, InputError, NonFiniteError,
    RepeatedSessionError, SessionError, SessionUnknownError, ShapeError,
)
from streamlstm.kernels.pack import aligned

cnp.import_array()

# About 5 us of work; giving up the GIL and taking it back costs a good part of one.
cdef Py_ssize_t RELEASE_MACS = 100_000

# About 1 ms of work: worth what it costs to hold BLAS to one thread around it.
cdef Py_ssize_t LONG_CALL_MACS = 20_000_000

# Numbers whose check is worth giving up the GIL for: about 10 us.
cdef Py_ssize_t RELEASE_CHECK = 100_000

# Rows worth fetching ahead of a step: what the second-level cache can hold.
cdef Py_ssize_t FETCH_BYTES = 512 << 10

# What apply_owned returns, less the event's number, where a policy refuses it.
cdef Py_ssize_t REFUSED = -3

cdef unsigned int forks = 0


def note_fork():
    global forks
    forks += 1


os.register_at_fork(after_in_child=note_fork)


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


cdef as_uint32(values, str name):
    array = np.asarray(values)
    if array.dtype != np.uint32:
        if array.ndim != 1 or array.size and (
                array.dtype.kind not in "iu" or array.min() < 0 or array.max() > 0xFFFFFFFF):
            raise InputError(f"{name} must be a vector of integers from 0 to 2**32 - 1")
        array = array.astype(np.uint32)
    return np.ascontiguousarray(array)


cdef class EngineCore:
    """State rows of the sessions of one model, and the network that steps them."""

    cdef readonly Network network
    cdef HeadSteps head_steps           # None: events are the network's own inputs
    cdef readonly Py_ssize_t inputs, outputs    # widths of events and of their answers
    cdef readonly Py_ssize_t state_size         # numbers of a session's state
    cdef Threads threads
    cdef readonly Arena arena
    cdef readonly object dtype
    cdef readonly bint closed
    cdef readonly object largest_event  # [inputs]: within it every number stays finite
    cdef void* largest
    cdef Py_ssize_t vocabulary  # of an embedding that takes the events; else 0
    cdef int typenum
    cdef unsigned int forks
    cdef cython.pythread_type_lock lock
    cdef bint away              # a step is under way without the GIL
    cdef char** rows            # row pointers of the micro-batch under way
    cdef Py_ssize_t rows_room

    def __cinit__(
        self, Network network not None, Py_ssize_t max_sessions, int threads, largest_event,
        Py_ssize_t vocabulary, CompiledHead head=None,
    ):
        cdef bint single = network.plan.kernel.numbers == FLOAT32 and head is None
        self.network = network
        self.threads = Threads(network, threads)
        self.inputs, self.outputs = network.plan.inputs, network.plan.outputs
        self.state_size, initial = network.state_size, network.initial_state
        if head is not None:
            self.head_steps = HeadSteps(head, network, self.threads)
            self.inputs, self.outputs = head.plan.readings, head.plan.outputs
            self.state_size, initial = self.head_steps.state_size, self.head_steps.initial_row
        self.dtype = np.dtype(np.float32 if single else np.float64)
        self.typenum = cnp.NPY_FLOAT32 if single else cnp.NPY_FLOAT64
        self.largest_event = np.array(largest_event, self.dtype)
        self.largest_event.flags.writeable = False
        self.largest = cnp.PyArray_DATA(self.largest_event)
        self.vocabulary = vocabulary
        self.arena = Arena(initial, max_sessions)
        self.forks = forks

    def __dealloc__(self):
        free(self.rows)

    # -- checks -----------------------------------------------------------------------

    cdef int check_usable(self) except -1:
        if self.forks != forks:
            raise ForkedProcessError(
                "this engine was created before os.fork and can't be used in the child; "
                "create an Engine in each process")
        if self.closed:
            raise EngineClosedError("this engine is closed; create a new Engine")
        return 0

    cdef bint fits(self, object x, int ndim) noexcept:
        """Whether x can be read in place: right dtype, dimensions, C order, last axis."""
        return (cnp.PyArray_Check(x) and cnp.PyArray_TYPE(<cnp.ndarray> x) == self.typenum
                and cnp.PyArray_ISCARRAY_RO(<cnp.ndarray> x)
                and cnp.PyArray_NDIM(<cnp.ndarray> x) == ndim
                and cnp.PyArray_DIM(<cnp.ndarray> x, ndim - 1) == self.inputs)

    cdef cnp.ndarray events(self, object x, int ndim):
        """x as an array whose last axis is the inputs: itself, or converted, or refused."""
        if not self.fits(x, ndim):
            x = self.convert(x, ndim)
        self.check_finite(x)
        return x

    cdef int check_finite(self, cnp.ndarray x) except -1:
        cdef Py_ssize_t width = self.inputs
        cdef Py_ssize_t n = cnp.PyArray_SIZE(x) // width
        cdef void* data = cnp.PyArray_DATA(x)
        cdef bint fine
        if n * width > RELEASE_CHECK:
            with nogil:
                fine = self.all_within(data, n)
        else:
            fine = self.all_within(data, n)
        if not fine:
            good = self.acceptable(x)
            where = [int(k[0]) for k in np.nonzero(~good)]
            if self.vocabulary:
                raise NonFiniteError(
                    f"input{where} is {x[tuple(where)]}; this model's embedding takes whole "
                    f"numbers from 0 to {self.vocabulary - 1}")
            raise NonFiniteError(
                f"input{where} is {x[tuple(where)]}; an event must be finite, and within "
                f"{self.largest_event[where[len(where) - 1]]:.1e} for this model: "
                f"{self.remedy(where[len(where) - 1])}")
        return 0

    cdef str remedy(self, Py_ssize_t column):
        if self.head_steps is None:
            return "repair it or leave it out"
        if column < self.head_steps.compiled.plan.timed:
            return "time is in seconds since 1970"
        return "give NaN for a missing value"

    cdef bint all_within(self, const void* x, Py_ssize_t n) noexcept nogil:
        cdef Py_ssize_t width = self.inputs
        cdef bint fine
        if self.head_steps is not None:
            return within_or_missing(
                <const double*> x, n, <const double*> self.largest, width,
                self.head_steps.compiled.plan.timed)
        if self.typenum == cnp.NPY_FLOAT32:
            fine = all_within(<const float*> x, n, <const float*> self.largest, width)
            return fine and (not self.vocabulary or all_whole(<const float*> x, n))
        fine = all_within(<const double*> x, n, <const double*> self.largest, width)
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
            if not self.is_exact(numbers, -1, self.state_size, False):
                self.refuse_inexact(numbers, "state", (self.state_size,), False)
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

    cdef inline void copy_out(self, const char* row, void* numbers) noexcept:
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

    cdef inline void run(
        self, Py_ssize_t n, Py_ssize_t steps, const void* x, void* y,
    ) noexcept nogil:
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
        cdef cnp.ndarray out = np.empty((n, ahead, self.head_steps.compiled.plan.quantiles))
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
        self.head_steps.reserve(n)
        for i in range(n):
            memcpy(copies, self.rows[i], self.arena.row_bytes)
            self.rows[i] = copies
            copies += self.arena.stride  # whole cache lines
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


cdef class SessionCore:
    """A handle on one row. `epoch` tells whether the row is still this handle's."""

    cdef readonly EngineCore engine
    cdef readonly str name
    cdef uint32_t row
    cdef uint32_t row_epoch
    cdef public bint _closed    # by this very handle

    def __cinit__(self, EngineCore engine not None, str name, uint32_t row, uint32_t epoch):
        self.engine = engine
        self.name = name
        self.row = row
        self.row_epoch = epoch

    @property
    def handle(self):
        """Number of the session's state row."""
        return self.row

    @property
    def epoch(self):
        """Changes with every owner of the row: (handle, epoch) names one ownership."""
        return self.row_epoch

    @property
    def closed(self):
        """Whether this handle can no longer be used."""
        return self.engine.closed or not self.engine.arena.owns(self.row, self.row_epoch)

    @property
    def seq(self):
        """Events applied since open. Raises SessionClosedError, SessionFencedError."""
        self.engine.check_usable()
        if not self.engine.arena.owns(self.row, self.row_epoch):
            raise self.engine.lost(self)
        return self.engine.arena.seq[self.row]

    def step(self, x):
        """Apply one event: x [inputs] -> fresh [outputs].

        x may be an array or list of real numbers, a mapping {input name: number}, or one
        number where the model has one input. Raises InputError (ShapeError, DtypeError,
        NonFiniteError, MissingInputError), SessionClosedError, SessionFencedError.
        """
        cdef EngineCore engine = self.engine
        cdef cnp.ndarray events = engine.events(x, 1)
        cdef cnp.npy_intp outputs = engine.outputs
        cdef cnp.ndarray out = cnp.PyArray_EMPTY(1, &outputs, engine.typenum, 0)
        self.apply(1, cnp.PyArray_DATA(events), cnp.PyArray_DATA(out))
        return out

    def step_into(self, x, out):
        """Apply one event without allocating: x [inputs] is read, out [outputs] written.

        Both must be C-contiguous arrays of exactly the engine's dtype, apart in
        memory. Raises as step().
        """
        cdef EngineCore engine = self.engine
        if not engine.is_exact(x, -1, engine.inputs, False):
            engine.refuse_inexact(x, "x", (engine.inputs,), False)
        if not engine.is_exact(out, -1, engine.outputs, True):
            engine.refuse_inexact(out, "out", (engine.outputs,), True)
        engine.check_finite(x)
        engine.check_apart(x, out)
        self.apply(1, cnp.PyArray_DATA(<cnp.ndarray> x), cnp.PyArray_DATA(<cnp.ndarray> out))

    def run(self, X, *, out=None):
        """Apply a sequence: X [time, inputs] -> [time, outputs], fresh or, where it is given, out.

        out: C-contiguous, of the engine's dtype, apart from X in memory. Raises as step().
        """
        cdef EngineCore engine = self.engine
        cdef cnp.ndarray events = engine.events(X, 2)
        cdef Py_ssize_t steps = cnp.PyArray_DIM(events, 0)
        out = engine.answers(out, events, (steps, engine.outputs))
        self.apply(steps, cnp.PyArray_DATA(events), cnp.PyArray_DATA(out))
        return out

    def forecast(self, steps):
        """Quantiles of the target in the next `steps` steps: [steps, quantiles] float64, in its
        unit; the session is left as it is.

        Up to the model's horizon they are what the network said at the last step. Beyond it a
        copy of the state is fed the medians as if they had been read (the others stay at their
        last values), and bands widen by the error of what it was fed. Raises InputError,
        EngineError for a model without a head, SessionClosedError, SessionFencedError.
        """
        got = self.engine.forecast(&self.row, &self.row_epoch, 1, steps)
        if isinstance(got, int):
            raise self.engine.lost(self)
        return got[0]

    cdef int apply(self, Py_ssize_t steps, const void* x, void* y) except -1:
        if self.engine.apply(&self.row, &self.row_epoch, 1, steps, x, y) >= 0:
            raise self.engine.lost(self)
        return 0


cdef class Group:
    """Many sessions stepped by one call; their rows are looked up once, here."""

    cdef readonly EngineCore engine
    cdef Py_ssize_t n
    cdef uint32_t* rows
    cdef uint32_t* epochs

    def __cinit__(self, EngineCore engine not None, sessions=None, handles=None, epochs=None):
        self.engine = engine
        engine.check_usable()
        if handles is None:
            sessions = list(sessions)
        self.n = len(sessions if handles is None else handles)
        self.rows = <uint32_t*> PyMem_Malloc((2 * self.n + 1) * sizeof(uint32_t))
        if not self.rows:
            raise MemoryError("no memory for a group of this size")
        self.epochs = self.rows + self.n
        if handles is None:
            self.take_sessions(sessions)
        else:
            self.take_handles(handles, epochs)
        cdef Py_ssize_t i
        with engine.lock:
            i = engine.arena.first_repeated(self.rows, self.n)
        if i >= 0:
            who = sessions[i].name if handles is None else f"with handle {self.rows[i]}"
            raise RepeatedSessionError(
                f"session {who} stands twice in one step (again at index {i}); "
                "a step applies one event to each session")

    def __dealloc__(self):
        PyMem_Free(self.rows)

    cdef int take_sessions(self, sessions) except -1:
        cdef SessionCore session
        cdef Py_ssize_t i
        for i in range(self.n):
            if not isinstance(sessions[i], SessionCore):
                raise InputError(
                    f"item {i} of the sessions is a {type(sessions[i]).__name__}; "
                    "give sessions that engine.open made")
            session = sessions[i]
            if session.engine is not self.engine:
                raise InputError(f"session {session.name} belongs to another engine")
            if not self.engine.arena.owns(session.row, session.row_epoch):
                raise self.engine.lost(session)
            self.rows[i] = session.row
            self.epochs[i] = session.row_epoch
        return 0

    cdef int take_handles(self, handles, epochs) except -1:
        cdef const uint32_t[::1] h = as_uint32(handles, "handles")
        cdef const uint32_t[::1] e = as_uint32(epochs, "epochs")
        cdef Py_ssize_t i
        if e.shape[0] != self.n:
            raise ShapeError(f"{self.n} handles came with {e.shape[0]} epochs")
        for i in range(self.n):
            if not self.engine.arena.owns(h[i], e[i]):
                raise SessionUnknownError(
                    f"handle {h[i]} with epoch {e[i]} (index {i}) names no open session; "
                    "open the session again")
            self.rows[i] = h[i]
            self.epochs[i] = e[i]
        return 0

    def __len__(self):
        return self.n

    def __repr__(self):
        return f"<Group of {self.n} session{'s' * (self.n != 1)} of {self.engine!r}>"

    def __dir__(self):
        return ["engine", "forecast", "numbers", "run", "seqs", "step", "step_into"]

    def __reduce__(self):
        raise SessionError(
            "a group can't be copied or pickled; make another one with engine.group(sessions)")

    def numbers(self):
        """Copies of the sessions' states, as State.numbers has them: [n, state_size].

        Raises SessionUnknownError.
        """
        cdef EngineCore engine = self.engine
        cdef Py_ssize_t i, width = engine.state_size * engine.dtype.itemsize
        engine.check_usable()
        cdef cnp.ndarray out = np.empty((self.n, engine.state_size), engine.dtype)
        cdef char* to = cnp.PyArray_BYTES(out)
        with engine.lock:
            for i in range(self.n):
                if not engine.arena.owns(self.rows[i], self.epochs[i]):
                    break
                engine.copy_out(engine.arena.row(self.rows[i]), to + i * width)
            else:
                return out
        self.raise_lost(i)

    @property
    def seqs(self):
        """Number of each session's last change (see Session): int64 [n]."""
        cdef int64_t[::1] seqs = np.empty(self.n, np.int64)
        cdef Py_ssize_t i
        self.engine.check_usable()
        for i in range(self.n):
            if not self.engine.arena.owns(self.rows[i], self.epochs[i]):
                self.raise_lost(i)
            seqs[i] = self.engine.arena.seq[self.rows[i]]
        return np.asarray(seqs)

    def step(self, X):
        """One event for each session: X [n, inputs] -> fresh [n, outputs].

        All sessions step or none does. Raises InputError, and SessionUnknownError when one
        was closed or taken over since the group was made.
        """
        cdef EngineCore engine = self.engine
        cdef cnp.ndarray events = engine.events(X, 2)
        cdef cnp.npy_intp shape[2]
        shape[0], shape[1] = self.n, engine.outputs
        cdef cnp.ndarray out = cnp.PyArray_EMPTY(2, shape, engine.typenum, 0)
        self.check_count(events)
        self.apply(1, cnp.PyArray_DATA(events), cnp.PyArray_DATA(out))
        return out

    def step_into(self, X, out):
        """step() without allocating: X [n, inputs] is read, out [n, outputs] written.

        Both must be C-contiguous arrays of exactly the engine's dtype, apart in memory.
        """
        cdef EngineCore engine = self.engine
        if not engine.is_exact(X, self.n, engine.inputs, False):
            engine.refuse_inexact(X, "X", (self.n, engine.inputs), False)
        if not engine.is_exact(out, self.n, engine.outputs, True):
            engine.refuse_inexact(out, "out", (self.n, engine.outputs), True)
        engine.check_finite(X)
        engine.check_apart(X, out)
        self.apply(1, cnp.PyArray_DATA(<cnp.ndarray> X), cnp.PyArray_DATA(<cnp.ndarray> out))

    def refusals(self, X):
        """Which of the readings X [n, inputs] a policy of the head would refuse, and why:
        {index: InputError}. Raises as step(), but for those."""
        cdef EngineCore engine = self.engine
        cdef Py_ssize_t i, k
        engine.check_usable()
        if engine.head_steps is None or not engine.head_steps.refuses:
            return {}
        cdef cnp.ndarray events = engine.events(X, 2)
        cdef const double* x = <const double*> cnp.PyArray_DATA(events)
        cdef unsigned char[::1] refused = np.zeros(max(self.n, 1), np.uint8)
        self.check_count(events)
        with engine.lock:
            i = engine.find_rows(self.rows, self.epochs, self.n)
            for k in range(self.n if i < 0 else 0):
                refused[k] = engine.head_steps.first_refused(
                    engine.rows + k, 1, 1, x + k * engine.inputs) == 0
        if i >= 0:
            self.raise_lost(i)
        found = np.flatnonzero(refused).tolist()
        return {k: engine.refusal(k, events[k].tolist()) for k in found}

    def run(self, X, *, out=None):
        """A sequence for each session: X [n, time, inputs] -> [n, time, outputs]. out: see Session.
        """
        cdef EngineCore engine = self.engine
        cdef cnp.ndarray events = engine.events(X, 3)
        cdef Py_ssize_t steps = cnp.PyArray_DIM(events, 1)
        self.check_count(events)
        out = engine.answers(out, events, (self.n, steps, engine.outputs))
        self.apply(steps, cnp.PyArray_DATA(events), cnp.PyArray_DATA(out))
        return out

    def forecast(self, steps):
        """Session.forecast of each: [n, steps, quantiles] float64."""
        got = self.engine.forecast(self.rows, self.epochs, self.n, steps)
        if isinstance(got, int):
            self.raise_lost(got)
        return got

    cdef int check_count(self, cnp.ndarray events) except -1:
        if cnp.PyArray_DIM(events, 0) != self.n:
            raise ShapeError(
                f"{cnp.PyArray_DIM(events, 0)} events came for {self.n} sessions; "
                "give one row a session, in the group's order")
        return 0

    cdef int apply(self, Py_ssize_t steps, const void* x, void* y) except -1:
        cdef Py_ssize_t i = self.engine.apply(self.rows, self.epochs, self.n, steps, x, y)
        if i >= 0:
            self.raise_lost(i)
        return 0

    cdef int raise_lost(self, Py_ssize_t i) except -1:
        self.engine.check_usable()
        raise SessionUnknownError(
            f"the session at index {i} of this group was closed or taken over; "
            "make a new group of open sessions")
