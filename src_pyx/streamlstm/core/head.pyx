"""The compiled half of head.py: one reading's way, without Python.

    begin   what the reading means: its place in time, what is missing, how many steps it makes
    feed    for each of these steps: count, score, and the network's input
    absorb  the network's output, kept for the next reading and for forecasts
    answer  the reading's answer

The state `s` is the session's own numbers; everything in it stays finite, whatever is read, and
whatever was restored.
reference_head.py is the definition of all this in Python.
"""
from cython cimport floating
from libc.math cimport copysign, cos, exp, fabs, floor, log, sin, sqrt
from libc.stdint cimport int64_t

import numpy as np

from streamlstm import head as constants
from streamlstm.errors import ShapeError

cdef double TAU = 6.283185307179586
cdef int STATISTICS = 3

MISSING_CHOICES = ("reject", "skip", "hold", "predict")
LATE_CHOICES = ("drop", "reject", "step")


cdef class CompiledHead:
    """A checked Head's numbers (see head.py), laid out for the code below."""

    def __cinit__(self, head):
        cdef Rules* p = &self.rules
        features = (head.target, *head.others)
        std = np.array([f.std for f in features])
        mean = np.array([f.mean for f in features])
        self.owned = []
        p.others, p.horizon, p.quantiles = len(head.others), head.horizon, len(head.quantiles)
        p.cycles = len(head.calendar)
        p.readings, p.outputs = len(head.inputs), len(head.outputs)
        p.network_inputs, p.network_outputs = head.network_inputs, head.network_outputs
        p.timed, p.gaps = head.time is not None, head.spacing == "gap"
        p.missing = MISSING_CHOICES.index(head.missing)
        p.late = LATE_CHOICES.index(head.late)
        p.step_s, p.warm_up = head.step_s, head.warm_up
        p.mean, p.scale, p.std = self.own(mean), self.own(1 / std), std[0]
        p.period_s = self.own([constants.CYCLES[c][0] for c in head.calendar])
        p.offset_s = self.own([constants.CYCLES[c][1] for c in head.calendar])
        p.forget, p.g_min = constants.FORGET, 1 / constants.SMOOTHING
        p.weight, p.half, p.quiet = constants.FORECAST_WEIGHT, constants.HALF, constants.QUIET
        p.fill_max, p.late_max = constants.FILL_MAX, constants.LATE_MAX
        p.largest_a, p.alert = constants.LARGEST_A, constants.ALERT
        p.pull = constants.PULL
        self.state_size = FIXED + p.network_outputs + p.others
        p.totals = self.own(np.zeros(COUNTERS))
        assert COUNTERS + 1 == len(constants.COUNTERS)
        assert (COUNTS, FIXED) == (constants.COUNTS, constants.FIXED)
        largest = constants.LARGEST_Z * std - np.abs(mean)
        time = [constants.LARGEST_TIME_S] if p.timed else []
        self.largest = np.concatenate([time, largest])

    def totals(self):
        """What all sessions counted together, by name."""
        counts = {constants.COUNTERS[k]: int(self.rules.totals[k]) for k in range(COUNTERS)}
        return counts | {"refused": self.refused}

    cdef double* own(self, numbers) except NULL:
        array = np.array([*numbers, 0.0])  # never empty
        self.owned.append(array)
        return <double*> <Py_ssize_t> array.ctypes.data


cdef inline bint is_nan(double x) noexcept nogil:
    return x != x


# Half the time of libm's; the error is of the size of 1's rounding, and all this is added to
# numbers of that size.
cdef inline double asinh(double z) noexcept nogil:
    return copysign(log(fabs(z) + sqrt(z * z + 1)), z)


cdef inline double sinh(double a) noexcept nogil:
    cdef double e = exp(a)
    return (e - 1 / e) / 2


# Inline, as libm's fmin and fmax are not.
cdef inline double smaller(double x, double y) noexcept nogil:
    return x if x < y else y


cdef inline double larger(double x, double y) noexcept nogil:
    return x if x > y else y


cdef inline void count(const Rules* p, double* s, int what) noexcept nogil:
    s[COUNTS + what] += 1
    p.totals[what] += 1


cdef inline double clamped(const Rules* p, double a) noexcept nogil:
    return larger(-p.largest_a, smaller(a, p.largest_a))


cdef inline double median(const Rules* p, const double* s, Py_ssize_t k) noexcept nogil:
    """The a that the last step forecasts for k + 1 steps after it."""
    return clamped(p, s[A] + s[FIXED + k * p.quantiles + p.quantiles // 2])


cdef int place(
    const Rules* p, double last_s, double read_s, double time_s, double* grid, double* log_gap,
) noexcept nogil:
    """Where a reading stands after the last step and reading: WAS_STEPPED, or how it is late."""
    cdef double steps = (time_s - last_s) / p.step_s
    grid[0], log_gap[0] = 1, 0
    if time_s <= read_s:
        return WAS_LATE if time_s < read_s else WAS_REPEATED
    if p.gaps:
        log_gap[0] = larger(-7, smaller(log(steps), 14))
        return WAS_STEPPED
    grid[0] = floor(steps + 0.5)
    return WAS_STEPPED if grid[0] >= 1 else WAS_EARLY


cdef inline double moved_to(
    const Rules* p, double last_s, double time_s, double grid_steps,
) noexcept nogil:
    """The time of the step that a reading of time_s makes, which the next is measured from."""
    cdef double on_grid = last_s + grid_steps * p.step_s
    if p.gaps or grid_steps == 0:
        return time_s
    return on_grid + p.pull * (time_s - on_grid)  # a clock that drifts is followed


cdef bint any_nan(const double* x, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t i
    cdef int bad = 0
    for i in range(n):
        bad |= is_nan(x[i])
    return bad


cdef bint lacks(const Rules* p, const double* x) noexcept nogil:
    """Whether a reading's step can't be made of it; a missing one of the others can be held."""
    return any_nan(x + p.timed, 1 + p.others if p.missing <= SKIP else 1)


cdef Py_ssize_t first_refused(
    const Rules* p, const double* s, const double* x, Py_ssize_t steps,
) noexcept nogil:
    """Index of the first of x [steps, readings] that a policy refuses, -1: none. Reads only."""
    cdef double last_s = s[TIME], read_s = s[READ], grid, log_gap
    cdef bint seen = s[SEEN] > 0
    cdef Py_ssize_t t
    for t in range(steps):
        if p.missing == REJECT and lacks(p, x):
            return t
        if p.late == LATE_REJECT and p.timed:
            grid = 0
            if seen and place(p, last_s, read_s, x[0], &grid, &log_gap) != WAS_STEPPED:
                return t
            if not lacks(p, x) or (seen and p.missing >= HOLD):
                last_s, read_s, seen = moved_to(p, last_s, x[0], grid), x[0], True
        x += p.readings
    return -1


cdef void begin(const Rules* p, double* s, const double* x, Take* take) noexcept nogil:
    """What a reading x [readings] makes the session do."""
    cdef bint seen = s[SEEN] > 0
    cdef int where = WAS_STEPPED
    take.x, take.passes, take.done, take.observed = x, 0, 0, False
    take.grid_steps, take.log_gap, take.score, take.reason = seen, 0, 0, 0
    take.status = WAS_STEPPED
    if p.timed and seen:
        where = place(p, s[TIME], s[READ], x[0], &take.grid_steps, &take.log_gap)
        if where != WAS_STEPPED:
            count(p, s, where)
            if p.late == LATE_DROP and not (where == WAS_LATE and s[LATE_RUN] >= p.late_max):
                s[LATE_RUN] += where == WAS_LATE
                take.status = where
                return
            take.grid_steps = 0  # the grid begins anew
    if any_nan(x + p.timed, 1 + p.others):
        count(p, s, MISSING)
    if lacks(p, x):
        if not seen or p.missing <= SKIP:
            count(p, s, SKIPPED)
            take.status = WAS_SKIPPED
            return
        take.status = WAS_HELD if p.missing == HOLD else WAS_PREDICTED
    s[LATE_RUN] = 0
    take.observed = take.status == WAS_STEPPED
    take.passes = 1
    if take.grid_steps > 1:
        count(p, s, GAPS)
        if p.missing >= HOLD and take.grid_steps - 1 <= p.fill_max:
            take.passes = <Py_ssize_t> take.grid_steps
            take.grid_steps = 1
    elif p.gaps and take.log_gap > 0.4054651081081644:  # log 1.5: nearer to two steps than to one
        count(p, s, GAPS)


cdef void feed(const Rules* p, double* s, Take* take, floating* x) noexcept nogil:
    """The take's next step: x [network_inputs], float32 or float64."""
    cdef bint last = take.done == take.passes - 1
    cdef double a, z
    cdef Py_ssize_t j
    if p.timed:
        if last:
            s[TIME], s[READ] = moved_to(p, s[TIME], take.x[0], take.grid_steps), take.x[0]
        else:
            s[TIME] += p.step_s
    if last and take.observed:
        z = (take.x[p.timed] - p.mean[0]) * p.scale[0]
        a = asinh(z)
        s[UNCHANGED] = s[UNCHANGED] + 1 if s[SEEN] > 0 and z == s[Z] else 0
        score(p, s, take, z, a)
        s[Z] = z
    elif p.missing == PREDICT:
        a = median(p, s, 0)
        count(p, s, PREDICTED)
    else:
        a = clamped(p, s[A])
        count(p, s, HELD)
    if last:
        for j in range(p.others):
            z = take.x[p.timed + 1 + j]
            if not is_nan(z):
                s[FIXED + p.network_outputs + j] = asinh((z - p.mean[1 + j]) * p.scale[1 + j])
    inputs(p, s, a, take.log_gap, x)
    take.done += 1


cdef void inputs(const Rules* p, double* s, double a, double log_gap, floating* x) noexcept nogil:
    """A step of a: what the network is given, x [network_inputs]."""
    cdef double phase
    cdef Py_ssize_t j
    x[0] = <floating> a
    x[1] = <floating> (a - clamped(p, s[A])) if s[SEEN] > 0 else 0
    x += 2
    for j in range(p.others):
        x[j] = <floating> clamped(p, s[FIXED + p.network_outputs + j])
    x += p.others
    for j in range(p.cycles):
        phase = (s[TIME] + p.offset_s[j]) / p.period_s[j]
        phase = TAU * (phase - floor(phase))
        x[2 * j], x[2 * j + 1] = <floating> sin(phase), <floating> cos(phase)
    if p.gaps:
        x[2 * p.cycles] = <floating> log_gap
    s[A] = a
    s[SEEN] += 1


cdef void score(const Rules* p, double* s, Take* take, double z, double a) noexcept nogil:
    """Score a reading against what was seen and forecast before it; then learn from it."""
    cdef double f = a, g, low, high, outside, worst = 0, x, width
    cdef Py_ssize_t k
    cdef double[3] statistics
    if s[SEEN] > 0:
        f = median(p, s, <Py_ssize_t> larger(1, smaller(take.grid_steps, p.horizon)) - 1)
    g = larger(p.g_min, 1 / (larger(s[SCORED], 0) + 1))
    s[LEVEL] += g * (a - s[LEVEL])
    s[DRIFT] += g * (a - f - s[DRIFT])
    statistics[0], statistics[1], statistics[2] = z, s[LEVEL], s[DRIFT]
    for k in range(STATISTICS):
        x = statistics[k]
        if s[SCORED] == 0:
            s[VALUE_LOW + 2 * k] = s[VALUE_HIGH + 2 * k] = x
            continue
        low, high = s[VALUE_LOW + 2 * k], s[VALUE_HIGH + 2 * k]
        # A series that was constant so far has a range of nothing; anything is far outside.
        width = larger(larger(high - low, 1e-9 * larger(fabs(low), fabs(high))), 1e-12)
        outside = larger(larger(x - high, low - x), 0) / width
        if k == STATISTICS - 1:
            outside *= p.weight
        if outside > worst:
            worst = outside
            take.reason = <int> (k + 1 if x > high else -(k + 1))
        low, high = smaller(low, x), larger(high, x)
        s[VALUE_LOW + 2 * k] = low + p.forget * (x - low)
        s[VALUE_HIGH + 2 * k] = high - p.forget * (high - x)
    s[SCORED] += 1
    s[AGE] += 1
    if s[AGE] > p.quiet:
        s[PEAK] = 0
    if worst > s[PEAK]:
        # Held back so that it stays a number that restore() takes.
        s[PEAK], s[AGE] = smaller(worst, 1e15), 0
        take.score = worst / (worst + p.half)
    else:
        take.reason = 0
    if s[SCORED] <= p.warm_up:  # what is no alert holds none back
        s[PEAK] = 0


cdef void absorb(const Rules* p, double* s, const floating* o) noexcept nogil:
    """Keep the network's outputs o [horizon, quantiles], the quantiles of each step sorted."""
    cdef Py_ssize_t _k, i, j
    cdef double x
    cdef double* to = s + FIXED
    for _k in range(p.horizon):
        for i in range(p.quantiles):
            x, j = larger(-2 * p.largest_a, smaller(o[i], 2 * p.largest_a)), i
            while j > 0 and to[j - 1] > x:
                to[j] = to[j - 1]
                j -= 1
            to[j] = x
        o += p.quantiles
        to += p.quantiles


cdef void answer(const Rules* p, const double* s, const Take* take, double* y) noexcept nogil:
    """y [outputs]: quantiles of the next step in the target's unit, and the verdict."""
    cdef Py_ssize_t j
    cdef bint warming = s[SCORED] <= p.warm_up
    for j in range(p.quantiles):
        y[j] = clamped(p, s[A] + s[FIXED + j])
    in_units(p, y, p.quantiles)
    y += p.quantiles
    y[0] = take.score
    y[1] = take.score >= p.alert and not warming
    y[2] = take.reason
    y[3] = take.status
    y[4] = warming


cdef void in_units(const Rules* p, double* a, Py_ssize_t n) noexcept nogil:
    """a [n] made values of the target's unit, in place."""
    cdef Py_ssize_t i
    for i in range(n):
        a[i] = p.mean[0] + p.std * sinh(a[i])


cdef void imagine(const Rules* p, double* s, double a, floating* x) noexcept nogil:
    """A step of a fork to a value that was forecast; the others stay as they are."""
    if p.timed:
        s[TIME] += p.step_s
    inputs(p, s, a, 0, x)


cdef void ahead(
    const Rules* p, const double* s, const double* f, Py_ssize_t k, double* out,
) noexcept nogil:
    """out [quantiles]: a, k + 1 steps ahead, s being a fork's that was fed what is beyond horizon.

    f [k, quantiles]: what was forecast for the steps before. The fork takes the medians it was fed
    for true; their own error comes on top, and independent errors add by their squares.
    """
    cdef Py_ssize_t q = p.quantiles, j, fed = k - p.horizon + 1
    cdef const double* o = s + FIXED + min(k, p.horizon - 1) * q
    cdef double middle, own, before
    for j in range(q):
        out[j] = clamped(p, s[A] + o[j])
    if fed <= 0:
        return
    middle = out[q // 2]
    f += (fed - 1) * q
    for j in range(q):
        own, before = out[j] - middle, f[j] - f[q // 2]
        out[j] = clamped(p, middle + copysign(sqrt(own * own + before * before), j - q // 2))


def unroll(head, readings):
    """The network's inputs in all steps that streaming `readings` would make, by the same code.

    readings: float64 [T, readings]. Returns x [S, network_inputs] float64; row [S] int64: the
    step's reading, -1 for a step that fills a gap; and position [S] int64: its place on the grid,
    which jumps where a gap is stepped over. There is no network to predict with: "predict" is
    done as "hold". Raises ShapeError.
    """
    cdef CompiledHead compiled = CompiledHead(head)
    cdef Rules* p = &compiled.rules
    if p.missing == PREDICT:
        p.missing = HOLD
    events = np.ascontiguousarray(readings, np.float64)
    if events.ndim != 2 or events.shape[1] != p.readings:
        raise ShapeError(f"readings have shape {events.shape}; expected [time, {p.readings}]")
    cdef const double[:, ::1] X = events
    cdef double[::1] s = np.zeros(compiled.state_size)
    cdef double[::1] x = np.zeros(p.network_inputs)
    cdef Take take
    cdef Py_ssize_t t
    cdef int64_t at = -1
    steps, rows, positions = [], [], []
    for t in range(X.shape[0]):
        if first_refused(p, &s[0], &X[t, 0], 1) == 0:
            continue
        begin(p, &s[0], &X[t, 0], &take)
        at += <int64_t> larger(take.grid_steps, 1) - 1 if take.passes else 0
        while take.done < take.passes:
            feed(p, &s[0], &take, &x[0])
            at += 1
            steps.append(np.asarray(x).copy())
            rows.append(t if take.done == take.passes else -1)
            positions.append(at)
    return (
        np.array(steps).reshape(-1, p.network_inputs),
        np.array(rows, np.int64), np.array(positions, np.int64),
    )
