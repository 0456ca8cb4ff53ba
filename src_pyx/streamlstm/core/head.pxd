"""Readings in, forecasts and scores out, around the steps of a network; see head.pyx."""
from cython cimport floating

# Numbers of a session's state that the head keeps; then come the network's last outputs
# [horizon, quantiles] and the last a of the others. SEEN 0: nothing of it means anything yet.
cdef enum:
    SEEN            # steps since the start, filled ones too
    TIME            # of the last step, on the grid, s
    READ            # of the last reading that made one, s
    Z, A            # last value, scaled
    SCORED          # readings scored
    LEVEL, DRIFT
    VALUE_LOW, VALUE_HIGH, LEVEL_LOW, LEVEL_HIGH, DRIFT_LOW, DRIFT_HIGH
    PEAK, AGE       # the score to exceed, and for how many steps
    LATE_RUN        # late readings dropped in a row
    COUNTS = 17     # and from here on the counters
    UNCHANGED = 25
    FIXED           # head.FIXED

# In head.COUNTERS' order; UNCHANGED, the last, is set back.
cdef enum:
    MISSING, HELD, PREDICTED, SKIPPED, REPEATED, LATE, EARLY, GAPS
    COUNTERS

# In the order of head.py's choices.
cdef enum:
    REJECT, SKIP, HOLD, PREDICT         # missing
cdef enum:
    LATE_DROP, LATE_REJECT, LATE_STEP   # late
cdef enum:                              # status; above 0 also the place of its counter
    WAS_STEPPED, WAS_HELD, WAS_PREDICTED, WAS_SKIPPED, WAS_REPEATED, WAS_LATE, WAS_EARLY


# All that a thread without the GIL needs of a Head. Read only, but for totals.
ctypedef struct Rules:
    Py_ssize_t others, horizon, quantiles, cycles
    Py_ssize_t readings, outputs            # widths of an event and of its answer
    Py_ssize_t network_inputs, network_outputs
    bint timed, gaps                        # readings have a time; gaps are an input
    int missing, late
    double step_s, warm_up
    double* mean                            # [1 + others]: the target's first
    double* scale                           # 1 / std
    double std                              # the target's
    double* period_s                        # [cycles]
    double* offset_s
    double* totals                          # of all sessions [COUNTERS]
    double forget, g_min, weight, half, quiet, fill_max, late_max, largest_a, alert, pull


# What one reading makes a session do.
ctypedef struct Take:
    const double* x     # the reading
    Py_ssize_t passes   # steps of the network; all but the last fill a gap; 0: none
    Py_ssize_t done
    int status
    bint observed       # the last step is of a value, not of a guess
    double grid_steps   # since the last step, those filled left out; 0: its own time counts
    double log_gap
    double score
    int reason


cdef class CompiledHead:
    cdef Rules rules
    cdef readonly Py_ssize_t state_size
    cdef readonly object largest            # of a reading's columns [readings], float64
    cdef Py_ssize_t refused                 # readings, by a policy
    cdef list owned

    cdef double* own(self, numbers) except NULL


cdef Py_ssize_t first_refused(
    const Rules* p, const double* s, const double* x, Py_ssize_t steps) noexcept nogil
cdef void begin(const Rules* p, double* s, const double* x, Take* take) noexcept nogil
cdef void feed(const Rules* p, double* s, Take* take, floating* x) noexcept nogil
cdef void absorb(const Rules* p, double* s, const floating* o) noexcept nogil
cdef void answer(const Rules* p, const double* s, const Take* take, double* y) noexcept nogil
cdef void imagine(const Rules* p, double* s, double a, floating* x) noexcept nogil
cdef void ahead(const Rules* p, const double* s, const double* f, Py_ssize_t k,
                double* out) noexcept nogil
cdef void in_units(const Rules* p, double* a, Py_ssize_t n) noexcept nogil
