"""What makes forecasts and anomaly scores of a network: a model's head, as data.

With a head, an event is a reading of a sensor: [time, target, others...], float64, time in seconds
since 1970 (no time where the head has none), NaN where a value is missing. A reading goes

    place it in time -> fill what is missing -> score it against what was seen and forecast
    -> a step of the network -> the quantiles of the next step

and step() answers [quantiles..., score, alert, reason, status, warming] (Head.outputs). All that
the head remembers is numbers in the session's row, behind h and c: it is copied, stored and
restored with them.

Scaling: z = (value - mean) / std, a = asinh(z): linear around the mean, logarithmic for outliers,
so that one wild value neither saturates the network nor hides the next one. The network is given
[a, a - a of the step before, a of each other column, sin and cos of each calendar cycle, log gap]
and says o[k, q]: quantile q of a, k + 1 steps ahead, is a + o[k, q]. So a network that says 0
forecasts the last value. The quantiles of a step are sorted (Chernozhukov et al. 2010,
10.3982/ECTA7880).

Policies, each with a counter (COUNTERS of a session; of an engine in all, and "refused"):

missing   A reading without a value. "reject": refused, nothing changes. "skip": no step. "hold":
          a step with the last value. "predict": a step with the network's own median. A missing
          one of the others makes "skip" skip; "hold" and "predict" go on with its last value.
          Steps that never came (grid: rounded gap / step_s, less 1) are filled in the same way,
          up to FILL_MAX of them; "reject", "skip" and longer gaps are stepped over.
late      A reading whose step is over: "late" (older than the last), "repeated" (same time),
          "early" (on a grid: nearer to the last step than to the next). "drop": no step.
          "reject": refused. "step": taken as the next step. After LATE_MAX late ones dropped with
          no step between them the sensor's clock is believed: one that was set back.
spacing   "grid": a reading belongs to the nearest of the times step_s apart from the first on; the
          grid moves by PULL of a reading's distance to it. "gap": each reading is a step, and
          log(gap / step_s) an input of the network.
constant  A value that does not change is a value; "unchanged" counts the steps since it did.

The score asks how far outside of the range seen so far three numbers are: the value z, the level
(a moving average of a) and the drift (a moving average of the forecast's error). The ranges forget
slowly. It is 0 unless worse than in the last QUIET steps, so that one disturbance alerts once.
docs/anomalies.md has the equations, how the constants were chosen and what each part adds.
"""

from __future__ import annotations

import math
import numbers
import operator
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Final, Literal, NamedTuple, get_args

from streamlstm.errors import InputError, ModelError, NonFiniteError
from streamlstm.feature import Feature

Missing = Literal["reject", "skip", "hold", "predict"]
Late = Literal["drop", "reject", "step"]
Spacing = Literal["grid", "gap"]
Cycle = Literal["day", "week", "year"]

# Seconds of a cycle and, for the week, from 1970-01-01 (a Thursday) to a Monday before it.
CYCLES: Final[dict[Cycle, tuple[float, float]]] = {
    "day": (86_400.0, 0.0),
    "week": (7 * 86_400.0, 3 * 86_400.0),
    "year": (365.2425 * 86_400.0, 0.0),
}
# The order of numbers in the state and of codes in the outputs; core/head.pxd has the same.
COUNTERS: Final = (
    *("missing", "held", "predicted", "skipped", "repeated", "late", "early", "gaps"),
    "unchanged",
)
STATUS: Final = ("stepped", *COUNTERS[1:7])
REASONS: Final = ("", "value", "level", "forecast")  # negative codes: below
VERDICT: Final = ("score", "alert", "reason", "status", "warming")

ALERT: Final = 0.5  # the score from which on a reading is an anomaly
SMOOTHING: Final = 6.0  # steps of the moving averages
FORGET: Final = 5e-5  # of the ranges, a step
FORECAST_WEIGHT: Final = 0.25  # of the drift, beside value and level
HALF: Final = 0.02  # ranges outside of the range that score 0.5
QUIET: Final = 100  # steps in which only worse scores again
FILL_MAX: Final = 100  # steps that a gap is filled with at most
LATE_MAX: Final = 100  # late readings in a row before the clock is believed
PULL: Final = 1 / 32  # of a reading on its grid, which follows a clock that drifts
LARGEST_Z: Final = 0.999e15  # of a value; within it all numbers stay what restore() takes
LARGEST_MEAN: Final = 1e12  # std
LARGEST_A: Final = 36.0  # asinh of that, and a little
LARGEST_TIME_S: Final = 1e11  # the year 5138; milliseconds since 1970 are beyond
LARGEST_STEP_S: Final = 1e8
HORIZON_MAX: Final = 10_000
AHEAD_MAX: Final = 10_000  # steps of one forecast
COUNTS: Final = 17  # where the counters stand in the state
FIXED: Final = 26  # numbers of state beside the outputs and the others; see core/head.pxd


class Residual(NamedTuple):
    """How far a forecast was off on rows that training had not seen, in the target's unit.

    mae, std: mean size and standard deviation of the median's error. coverage: share of the rows
    between the lowest and the highest quantile.
    """

    mae: float
    std: float
    coverage: float


class Report(NamedTuple):
    """One answer of step(), read. forecast: the next step's quantiles, in the target's unit;
    score in [0, 1]; reason: "" or "value above" and the like: of what was seen before."""

    forecast: tuple[float, ...]
    score: float
    alert: bool
    reason: str
    status: str
    warming: bool


@dataclass(frozen=True)
class Head:
    """Names, scaling and policies of a model that forecasts `target`; see the module.

    target, others: their mean and std scale. time: the time column's name, None where readings
    have no time and each is a step. step_s: seconds between steps. horizon: steps that the network
    forecasts directly. quantiles: an odd number, ascending, 0.5 in the middle. calendar: cycles
    that the network is told. warm_up: values that a session reads before it may alert. residuals:
    of each step of the horizon, or none. Raises ModelError.
    """

    target: Feature
    others: tuple[Feature, ...] = ()
    time: str | None = None
    step_s: float = 1.0
    horizon: int = 1
    quantiles: tuple[float, ...] = (0.1, 0.5, 0.9)
    calendar: tuple[Cycle, ...] = ()
    spacing: Spacing = "grid"
    missing: Missing = "hold"
    late: Late = "drop"
    warm_up: int = 100
    residuals: tuple[Residual, ...] = ()

    def __post_init__(self) -> None:
        self._convert()
        for f in (self.target, *self.others):
            if not (1e-150 <= f.std <= 1e150 and abs(f.mean) <= LARGEST_MEAN * f.std):
                raise ModelError(
                    f"{f.name!r} has mean {f.mean} and std {f.std}; std must be above 0 and the "
                    f"mean within {LARGEST_MEAN:.0e} of it"
                )
        q = self.quantiles
        if not (
            len(q) % 2
            and len(q) <= 99
            and q[len(q) // 2] == 0.5
            and all(0 < a < b for a, b in zip(q, (*q[1:], 1.0), strict=True))
        ):
            raise ModelError(
                f"quantiles are {q}; give an odd number of them, ascending, between 0 and 1, "
                "with 0.5 in the middle"
            )
        if not 1 <= self.horizon <= HORIZON_MAX:
            raise ModelError(f"horizon is {self.horizon}; give 1 to {HORIZON_MAX:,} steps")
        if not 0 <= self.warm_up <= 2**31:
            raise ModelError(f"warm_up is {self.warm_up}; give 0 to {2**31} steps")
        if self.residuals and len(self.residuals) != self.horizon:
            raise ModelError(
                f"{len(self.residuals)} residuals came for a horizon of {self.horizon} steps"
            )
        if not all(math.isfinite(number) for r in self.residuals for number in r):
            raise ModelError("residuals must be finite numbers")
        self._check_policies()

    def _convert(self) -> None:
        """Every number of one type, because 1 and 1.0 are different texts in a fingerprint."""
        keep = partial(object.__setattr__, self)
        try:
            keep("target", _as_floats(self.target))
            keep("others", tuple(map(_as_floats, self.others)))
            keep("step_s", _as_float(self.step_s))
            keep("quantiles", tuple(map(_as_float, self.quantiles)))
            keep("calendar", tuple(self.calendar))
            keep("horizon", operator.index(self.horizon))
            keep("warm_up", operator.index(self.warm_up))
            keep("residuals", tuple(Residual(*map(_as_float, r)) for r in self.residuals))
        except (TypeError, ValueError, OverflowError) as error:
            raise ModelError(f"a head's numbers must be numbers: {error}") from None
        if not (self.time is None or isinstance(self.time, str)):
            raise ModelError(f"time is {self.time!r}; give the name of the time column, or None")

    def _check_policies(self) -> None:
        for name, choices in (("missing", Missing), ("late", Late), ("spacing", Spacing)):
            _check_choice(name, getattr(self, name), choices)
        for cycle in self.calendar:
            _check_choice("calendar", cycle, Cycle)
        if len(set(self.calendar)) != len(self.calendar):
            raise ModelError(f"calendar {self.calendar} has a cycle twice")
        if self.time is None and (self.calendar or self.spacing == "gap"):
            raise ModelError("calendar cycles and gaps need the readings' time; name its column")
        if not 1e-3 <= self.step_s <= LARGEST_STEP_S:
            raise ModelError(f"step_s is {self.step_s}; give 0.001 to {LARGEST_STEP_S:.0e} s")

    @property
    def inputs(self) -> tuple[Feature, ...]:
        """The columns of a reading: time where there is one, target, others."""
        time = () if self.time is None else (Feature(self.time, "s"),)
        return (*time, self.target, *self.others)

    @property
    def outputs(self) -> tuple[Feature, ...]:
        """What step() answers: quantiles of the next step, then VERDICT."""
        name, unit = self.target.name, self.target.unit
        quantiles = (Feature(f"{name}_p{100 * q:g}", unit) for q in self.quantiles)
        return (*quantiles, *map(Feature, VERDICT))

    @property
    def network_inputs(self) -> int:
        """Numbers that the network is given."""
        return 2 + len(self.others) + 2 * len(self.calendar) + (self.spacing == "gap")

    @property
    def network_outputs(self) -> int:
        """Numbers that the network says: quantiles of each step of the horizon."""
        return self.horizon * len(self.quantiles)

    @property
    def state_size(self) -> int:
        """Numbers that a session keeps for the head."""
        return FIXED + self.network_outputs + len(self.others)

    def report(self, y: Iterable[float]) -> Report:
        """One row of step()'s or run()'s outputs [outputs], read."""
        numbers = [float(number) for number in y]
        *forecast, score, alert, reason, status, warming = numbers
        side = "" if not reason else " above" if reason > 0 else " below"
        return Report(
            tuple(forecast),
            score,
            bool(alert),
            REASONS[abs(int(reason))] + side,
            STATUS[int(status)],
            bool(warming),
        )

    def counters(self, numbers: Any) -> dict[str, int]:
        """COUNTERS of a session's state, numbers [state_size] as State.numbers has them."""
        start = len(numbers) - self.state_size + COUNTS
        counts = numbers[start : start + len(COUNTERS)]
        return {name: int(count) for name, count in zip(COUNTERS, counts, strict=True)}

    def last_reading(self, numbers: Any) -> tuple[float, float] | None:
        """Time and value of the last reading that made a step, of a session's state, numbers
        [state_size]; None before there was any. The time is 0 where readings have none."""
        start = len(numbers) - self.state_size
        seen, _, time_s, z = (float(number) for number in numbers[start : start + 4])
        return (time_s, self.target.mean + self.target.std * z) if seen else None

    def description(self) -> dict[str, Any]:
        """All of it, as JSON's types; read() takes it."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in asdict(self).items()
        } | {"residuals": [list(r) for r in self.residuals]}

    @classmethod
    def read(cls, told: Mapping[str, Any]) -> Head:
        """A head from its description. Raises ModelError."""
        try:
            fields = dict(told)
            fields["target"] = Feature(**fields["target"])
            fields["others"] = tuple(Feature(**f) for f in fields["others"])
            return cls(**fields)
        except (TypeError, ValueError, LookupError, AttributeError) as error:
            raise ModelError(f"this does not describe a head: {error}") from None


def _as_floats(f: Feature) -> Feature:
    if not isinstance(f, Feature):
        raise ModelError(f"a head's target and others are Features; got {f!r}")
    return Feature(f.name, f.unit, _as_float(f.mean), _as_float(f.std))


def _as_float(number: Any) -> float:
    if isinstance(number, numbers.Real) and not isinstance(number, bool):
        return float(number)
    raise TypeError(f"{number!r} is none")


def checked_ahead(steps: Any) -> int:
    """A number of steps to forecast. Raises InputError."""
    with suppress(TypeError):
        if not isinstance(steps, bool) and 1 <= operator.index(steps) <= AHEAD_MAX:
            return operator.index(steps)
    raise InputError(f"a forecast goes 1 to {AHEAD_MAX:,} steps ahead; got {steps!r}")


def refusal(index: int, reading: Mapping[str, float], head: Head) -> InputError:
    """Why a policy refuses reading `index`."""
    lacking = [name for name, value in reading.items() if math.isnan(value)]
    if lacking and head.missing == "reject":
        return NonFiniteError(
            f"reading {index} lacks {', '.join(lacking)}, and the model's policy is "
            "missing='reject': repair it or leave it out"
        )
    return InputError(
        f"reading {index}, of time {reading[str(head.time)]:.3f}, is not after the last one by "
        f"half a step ({head.step_s:g} s) at least, and the model's policy is late='reject': "
        "leave it out"
    )


def _check_choice(name: str, given: Any, choices: Any) -> None:
    if given not in get_args(choices):
        raise ModelError(f"{name} is {given!r}; choose of {', '.join(get_args(choices))}")
