"""How good a model's forecasts are: streamed through an engine, beside what needs no model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import compress
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from streamlstm.engine import Engine
from streamlstm.errors import InputError
from streamlstm.head import CYCLES, Cycle, Head, Residual
from streamlstm.model import Model
from streamlstm.training.history import History

Array = NDArray[Any]
Rival = Callable[[History, int], Array]  # what it says [S] of the value so many steps later

LAST = "last value"
SEASONS: Final[dict[str, Cycle]] = {"same time yesterday": "day", "same time last week": "week"}
PERIOD_MOST: Final = 1000  # steps


@dataclass(frozen=True)
class Errors:
    """Forecasts `steps` ahead of the median against what came.

    rows: how many. model, rivals: mean absolute errors in the target's unit on the same rows, those
    of which all is known. residual: of all rows whose value came, whatever the rivals know; NaN
    where none came.
    """

    steps: int
    rows: int
    model: float
    rivals: dict[str, float]
    residual: Residual


def streamed(model: Model, history: History) -> tuple[Array, Counter[str]]:
    """The forecasts made in each step, as a live session makes them, and what it counted.

    [S, horizon, quantiles] in the target's unit, NaN in steps that fill a gap: nobody sees those.
    "refused" counts the readings that a policy refused.
    """
    assert model.head is not None
    head = model.head
    forecasts = np.full((len(history), head.horizon, len(head.quantiles)), np.nan)
    step_of = {row: step for step, row in enumerate(history.row.tolist()) if row >= 0}
    refused = 0
    with Engine(model, max_sessions=1) as engine:
        session = engine.open("series")
        for row, reading in enumerate(history.readings):
            try:
                session.step(reading)
            except InputError:
                refused += 1
                continue
            if row in step_of:
                forecasts[step_of[row]] = session.forecast(head.horizon)
        return forecasts, Counter(engine.counters()) + Counter(refused=refused)


def tables(
    history: History, said: Array, rivals: Mapping[str, Rival], *, unseen: bool
) -> list[Array]:
    """What errors() reads, of each step of the horizon: [rows, truth, quantiles and rivals].

    said: what streamed() gives. unseen: the rows are the unseen ones; else the held-out ones.
    """
    own = slice(history.unseen, None) if unseen else slice(history.held_out, history.unseen)
    return [
        np.column_stack(
            [
                history.at(k + 1, history.value),
                said[:, k],
                *(rival(history, k + 1) for rival in rivals.values()),
            ]
        )[own]
        for k in range(said.shape[1])
    ]


def errors(steps: int, table: Array, rivals: Sequence[str], quantiles: int) -> Errors:
    """The errors of forecasts `steps` ahead; table: of all series, one below the other."""
    table = table[np.isfinite(table[:, : 1 + quantiles]).all(axis=1)]
    truth, said = table[:, 0], table[:, 1 : 1 + quantiles]
    median = said[:, quantiles // 2]
    miss = median - truth
    if not len(table):
        nothing = float("nan")
        return Errors(steps, 0, nothing, {}, Residual(nothing, nothing, nothing))
    inside = (said[:, 0] <= truth) & (truth <= said[:, -1])
    residual = Residual(float(np.abs(miss).mean()), float(miss.std()), float(inside.mean()))
    others = table[:, 1 + quantiles :]
    known = np.isfinite(others)
    # A rival that mostly knows nothing would leave too few rows to compare on.
    able = known.mean(axis=0) >= 0.5
    while not (fair := known[:, able].all(axis=1)).any():
        able[np.argmin(np.where(able, known.sum(axis=0), np.inf))] = False
    sizes = np.abs(others[np.ix_(fair, able)] - truth[fair, None]).mean(axis=0)
    return Errors(
        steps,
        int(fair.sum()),
        float(np.abs(miss[fair]).mean()),
        dict(zip(compress(rivals, able), sizes.tolist(), strict=True)),
        residual,
    )


def rivals(head: Head, histories: Sequence[History]) -> dict[str, Rival]:
    """Forecasts that need no model: the last value, and those of a season.

    By the clock, yesterday's and last week's; else by the period that repeats best.
    """
    longest = max(histories, key=len)
    seen = longest.value[: longest.unseen]
    most = len(seen) // 3
    found: dict[str, Rival] = {LAST: partial(_last, head)}
    if head.time is not None:
        for name, cycle in SEASONS.items():
            lag_s = CYCLES[cycle][0]
            if 2 <= lag_s / head.step_s <= most:
                found[name] = partial(History.before, lag_s=lag_s, step_s=head.step_s)
        if len(found) > 1:
            return found
    misses = [_miss(seen[lag:], seen[:-lag]) for lag in range(1, min(most, PERIOD_MOST) + 1)]
    period = 1 + int(np.argmin(misses))
    if period > 1:
        found[f"{period} steps before"] = partial(_periods_before, period)
    return found


def _last(head: Head, history: History, _: int) -> Array:
    return head.target.mean + head.target.std * np.sinh(history.x[:, 0])


def _periods_before(period: int, history: History, steps: int) -> Array:
    """The value a period, or as many as are known by now, before the one `steps` later."""
    return history.at(steps - period * -(-steps // period), history.value)


def _miss(a: Array, b: Array) -> float:
    """Mean absolute difference where both are known; infinite where they never are."""
    apart = np.abs(a - b)
    known = np.isfinite(apart)
    return float(apart[known].mean()) if known.any() else np.inf
