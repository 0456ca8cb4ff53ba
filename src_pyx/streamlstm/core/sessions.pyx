"""Sessions and groups of them: what owns rows of an engine; the compiled half of Session."""
cimport numpy as cnp
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from libc.stdint cimport int64_t, uint32_t

import numpy as np

from streamlstm.core.engine cimport EngineCore

from streamlstm.errors import (
    InputError, RepeatedSessionError, SessionError, SessionUnknownError, ShapeError,
)

cnp.import_array()


cdef as_uint32(values, str name):
    array = np.asarray(values)
    if array.dtype != np.uint32:
        if array.ndim != 1 or array.size and (
                array.dtype.kind not in "iu" or array.min() < 0 or array.max() > 0xFFFFFFFF):
            raise InputError(f"{name} must be a vector of integers from 0 to 2**32 - 1")
        array = array.astype(np.uint32)
    return np.ascontiguousarray(array)


cdef class SessionCore:
    """One owner of one row: (row, epoch) names one ownership for ever."""

    cdef readonly EngineCore engine
    cdef readonly str name
    cdef readonly uint32_t row      # number of the state row
    cdef readonly uint32_t epoch    # changes with every owner of the row
    cdef public bint _closed        # by this very owner

    def __cinit__(self, EngineCore engine not None, str name, uint32_t row, uint32_t epoch):
        self.engine = engine
        self.name = name
        self.row = row
        self.epoch = epoch

    @property
    def closed(self):
        """Whether this session can no longer be used: closed, or taken over."""
        return self.engine.closed or not self.engine.arena.owns(self.row, self.epoch)

    @property
    def seq(self):
        """Events applied since open. Raises SessionClosedError, SessionFencedError."""
        self.engine.check_usable()
        if not self.engine.arena.owns(self.row, self.epoch):
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
        cdef cnp.ndarray out = cnp.PyArray_EMPTY(1, &outputs, engine.checks.typenum, 0)
        self.apply(1, cnp.PyArray_DATA(events), cnp.PyArray_DATA(out))
        return out

    def step_into(self, x, out):
        """Apply one event without allocating: x [inputs] is read, out [outputs] written.

        Both must be C-contiguous arrays of exactly the engine's dtype, apart in
        memory. Raises as step().
        """
        cdef EngineCore engine = self.engine
        if not engine.checks.is_exact(x, -1, engine.inputs, False):
            engine.checks.refuse_inexact(x, "x", (engine.inputs,), False)
        if not engine.checks.is_exact(out, -1, engine.outputs, True):
            engine.checks.refuse_inexact(out, "out", (engine.outputs,), True)
        engine.check_finite(x)
        engine.checks.check_apart(x, out)
        self.apply(1, cnp.PyArray_DATA(<cnp.ndarray> x), cnp.PyArray_DATA(<cnp.ndarray> out))

    def run(self, X, *, out=None):
        """Apply a sequence: X [time, inputs] -> [time, outputs], fresh or, where it is given, out.

        out: C-contiguous, of the engine's dtype, apart from X in memory. Raises as step().
        """
        cdef EngineCore engine = self.engine
        cdef cnp.ndarray events = engine.events(X, 2)
        cdef Py_ssize_t steps = cnp.PyArray_DIM(events, 0)
        out = engine.checks.answers(out, events, (steps, engine.outputs))
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
        got = self.engine.forecast(&self.row, &self.epoch, 1, steps)
        if isinstance(got, int):
            raise self.engine.lost(self)
        return got[0]

    cdef int apply(self, Py_ssize_t steps, const void* x, void* y) except -1:
        if self.engine.apply(&self.row, &self.epoch, 1, steps, x, y) >= 0:
            raise self.engine.lost(self)
        return 0


cdef class Group:
    """Many sessions stepped by one call; their rows are looked up once, here."""

    cdef readonly EngineCore engine
    cdef Py_ssize_t n
    cdef uint32_t* rows
    cdef uint32_t* epochs

    def __cinit__(self, EngineCore engine not None, sessions=None, rows=None, epochs=None):
        self.engine = engine
        engine.check_usable()
        if rows is None:
            sessions = list(sessions)
        self.n = len(sessions if rows is None else rows)
        self.rows = <uint32_t*> PyMem_Malloc((2 * self.n + 1) * sizeof(uint32_t))
        if not self.rows:
            raise MemoryError("no memory for a group of this size")
        self.epochs = self.rows + self.n
        if rows is None:
            self.take_sessions(sessions)
        else:
            self.take_rows(rows, epochs)
        cdef Py_ssize_t i
        with engine.lock:
            i = engine.arena.first_repeated(self.rows, self.n)
        if i >= 0:
            who = sessions[i].name if rows is None else f"of row {self.rows[i]}"
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
            if not self.engine.arena.owns(session.row, session.epoch):
                raise self.engine.lost(session)
            self.rows[i] = session.row
            self.epochs[i] = session.epoch
        return 0

    cdef int take_rows(self, rows, epochs) except -1:
        cdef const uint32_t[::1] r = as_uint32(rows, "rows")
        cdef const uint32_t[::1] e = as_uint32(epochs, "epochs")
        cdef Py_ssize_t i
        if e.shape[0] != self.n:
            raise ShapeError(f"{self.n} rows came with {e.shape[0]} epochs")
        for i in range(self.n):
            if not self.engine.arena.owns(r[i], e[i]):
                raise SessionUnknownError(
                    f"row {r[i]} with epoch {e[i]} (index {i}) is no open session's; "
                    "open the session again")
            self.rows[i] = r[i]
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
        cdef cnp.ndarray out = cnp.PyArray_EMPTY(2, shape, engine.checks.typenum, 0)
        self.check_count(events)
        self.apply(1, cnp.PyArray_DATA(events), cnp.PyArray_DATA(out))
        return out

    def step_into(self, X, out):
        """step() without allocating: X [n, inputs] is read, out [n, outputs] written.

        Both must be C-contiguous arrays of exactly the engine's dtype, apart in memory.
        """
        cdef EngineCore engine = self.engine
        if not engine.checks.is_exact(X, self.n, engine.inputs, False):
            engine.checks.refuse_inexact(X, "X", (self.n, engine.inputs), False)
        if not engine.checks.is_exact(out, self.n, engine.outputs, True):
            engine.checks.refuse_inexact(out, "out", (self.n, engine.outputs), True)
        engine.check_finite(X)
        engine.checks.check_apart(X, out)
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
        out = engine.checks.answers(out, events, (self.n, steps, engine.outputs))
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
