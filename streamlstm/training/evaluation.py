"""How good a model's forecasts are: streamed through an engine, beside what needs no model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
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

LAST = "last value"
SEASONS: Final[dict[str, Cycle]] = {"same time yesterday": "day", "same time last week": "week"}
PERIOD_MOST: Final = 1000  # steps


@dataclass(frozen=True)
class Errors:
    """Forecasts `steps` ahead of the median against what came.

    rows: how many. model, rivals: mean absolute errors in the target's unit on the same rows, those
    of which all is known. residual: of all rows whose value came, whatever the rivals know.
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


def evaluate(
    model: Model, histories: Sequence[History], *, unseen: bool
) -> tuple[tuple[Errors, ...], Counter[str]]:
    """Errors of each step of the horizon, over all series, and what the sessions counted.

    unseen: errors of the forecasts made in the unseen rows; else in the held-out ones.
    """
    assert model.head is not None
    head = model.head
    lags = _seasons(head, histories)
    tables: list[list[Array]] = [[] for _ in range(head.horizon)]
    counted: Counter[str] = Counter()
    for history in histories:
        forecasts, counts = streamed(model, history)
        counted += counts
        own = slice(history.unseen, None) if unseen else slice(history.held_out, history.unseen)
        for k, table in enumerate(tables):
            table.append(_table(history, k, forecasts[:, k], lags, head)[own])
    rivals, quantiles = [LAST, *lags], len(head.quantiles)
    return (
        tuple(_errors(k + 1, np.concatenate(t), rivals, quantiles) for k, t in enumerate(tables)),
        counted,
    )


def _table(history: History, k: int, said: Array, lags: dict[str, int], head: Head) -> Array:
    """Columns: truth, quantiles, last value, and what came a lag (or some) before the truth."""
    last = head.target.mean + head.target.std * np.sinh(history.x[:, 0])
    before = [history.at(k + 1 - lag * -(-(k + 1) // lag), history.value) for lag in lags.values()]
    return np.column_stack([history.at(k + 1, history.value), said, last, *before])


def _errors(steps: int, table: Array, rivals: Sequence[str], quantiles: int) -> Errors:
    table = table[np.isfinite(table[:, : 1 + quantiles]).all(axis=1)]
    truth, said = table[:, 0], table[:, 1 : 1 + quantiles]
    median = said[:, quantiles // 2]
    miss = median - truth
    if not len(table):
        nothing = float("nan")
        return Errors(steps, 0, nothing, {}, Residual(nothing, nothing, nothing))
    inside = (said[:, 0] <= truth) & (truth <= said[:, -1])
    residual = Residual(float(np.abs(miss).mean()), float(miss.std()), float(inside.mean()))
    # A rival that mostly knows nothing would leave too few rows to compare on.
    others = table[:, 1 + quantiles :]
    able = np.isfinite(others).mean(axis=0) >= 0.5
    others = others[:, able]
    fair = np.isfinite(others).all(axis=1)
    sizes = np.abs(others[fair] - truth[fair, None]).mean(axis=0)
    return Errors(
        steps,
        int(fair.sum()),
        float(np.abs(miss[fair]).mean()),
        dict(zip(compress(rivals, able), sizes.tolist(), strict=True)),
        residual,
    )


def _seasons(head: Head, histories: Sequence[History]) -> dict[str, int]:
    """Steps of a day and a week where steps have them, else the period that repeats best."""
    longest = max(histories, key=len)
    seen = longest.value[: longest.unseen]
    most = len(seen) // 3
    if head.time is not None and head.spacing == "grid":
        steps = {name: CYCLES[cycle][0] / head.step_s for name, cycle in SEASONS.items()}
        found = {n: round(s) for n, s in steps.items() if abs(s - round(s)) < 1e-6 * s}
        found = {name: lag for name, lag in found.items() if 2 <= lag <= most}
        if found:
            return found
    misses = [_miss(seen[lag:], seen[:-lag]) for lag in range(1, min(most, PERIOD_MOST) + 1)]
    period = 1 + int(np.argmin(misses))
    return {f"{period} steps before": period} if period > 1 else {}


def _miss(a: Array, b: Array) -> float:
    """Mean absolute difference where both are known; infinite where they never are."""
    apart = np.abs(a - b)
    known = np.isfinite(apart)
    return float(apart[known].mean()) if known.any() else np.inf
