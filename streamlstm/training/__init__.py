"""A model with a head from readings: one call, in seconds to minutes on one core.

    [series] = readings.read("flow.csv", "flow")
    model = training.fit([series], target="flow", horizon=24)
    model.save("flow.safetensors")

A series' rows are cut in three, in the order of time: rows to train on, held-out rows that tell
when to stop, unseen rows for the errors that are reported. Scaling knows nothing of the unseen
ones. The model that is given back is the one that was reported on: it is not trained again with
the rows that were left out. Needs PyTorch (the [train] extra); the same seed gives the same bits
on the same machine with the same PyTorch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from streamlstm.errors import InputError, ModelError
from streamlstm.head import Cycle, Head, Late, Missing, Spacing
from streamlstm.importers import from_torch
from streamlstm.model import Model
from streamlstm.model_file import Comparison
from streamlstm.readings import Series
from streamlstm.training import evaluation, network
from streamlstm.training.evaluation import Errors
from streamlstm.training.history import (
    UNSEEN,
    History,
    check_enough,
    check_known,
    check_order,
    head_for,
)
from streamlstm.training.network import Progress

__all__ = ["Errors", "Progress", "Trained", "fit", "head_for", "train"]

Array = NDArray[Any]

HIDDEN: Final = 32
# Of engine and PyTorch at most, in std. Float32 rounds by 1e-7, swapped gates by tenths.
DIFFERENCE: Final = 1e-4


@dataclass(frozen=True)
class Trained:
    """A trained model and how good it is.

    errors: of each step of the horizon. difference: the largest of the streamed forecasts from
    PyTorch's, over all rows: in std of the target or, further than that from its mean, as a share
    of the distance. rows: given; steps: made of them; unseen: rows that the errors are of.
    counted: what became of the rows, by head.COUNTERS and "refused". empty: names of series without
    a value, which were left out.
    """

    model: Model
    errors: tuple[Errors, ...]
    difference: float
    rows: int
    steps: int
    unseen: int
    counted: Mapping[str, int]
    empty: tuple[str, ...] = ()

    @property
    def compared(self) -> Comparison:
        """The difference, as a model file keeps it."""
        framework = f"PyTorch {torch.__version__.partition('+')[0]}"
        return Comparison(framework, self.steps, self.difference)


def fit(
    series: Sequence[Series],
    *,
    target: str,
    others: Sequence[str] = (),
    time: str | None = None,
    horizon: int = 1,
    quantiles: Sequence[float] = (0.1, 0.5, 0.9),
    units: str = "",
    step_s: float | None = None,
    spacing: Spacing = "grid",
    calendar: Sequence[Cycle] | None = None,
    missing: Missing = "hold",
    late: Late = "drop",
    hidden: int = HIDDEN,
    seed: int = 0,
    name: str = "model",
    unseen: float = UNSEEN,
    progress: Callable[[Progress], None] | None = None,
) -> Model:
    """One model of all series, with its head and residuals: head_for, then train."""
    head = head_for(
        series,
        target,
        others=others,
        time=time,
        units=units,
        step_s=step_s,
        spacing=spacing,
        calendar=calendar,
        horizon=horizon,
        quantiles=quantiles,
        missing=missing,
        late=late,
        unseen=unseen,
    )
    return train(
        series, head, hidden=hidden, seed=seed, name=name, unseen=unseen, progress=progress
    ).model


def train(
    series: Sequence[Series],
    head: Head,
    *,
    hidden: int = HIDDEN,
    seed: int = 0,
    name: str = "model",
    unseen: float = UNSEEN,
    progress: Callable[[Progress], None] | None = None,
) -> Trained:
    """Train a network for `head` and try it on the last share `unseen` of each series' rows.

    hidden: units of the LSTM. unseen: with 0 all rows are trained on or held out, and the errors
    and residuals are those on the held-out rows, which had a say in the training. Raises InputError
    where there are too few rows or values, or many rows are not in the order of time, ModelError
    where the engine doesn't say what PyTorch says.
    """
    every = [History.of(head, s, unseen) for s in series]
    histories = [h for h in every if np.isfinite(h.value).any()]
    if not histories:
        raise InputError(f"column {head.target.name} has no value")
    check_order(head, histories)
    check_enough(histories, head.horizon, unseen)
    targets = [h.targets(head.horizon) for h in histories]
    check_known(targets, [h.held_out for h in histories], head.target.name)
    steps = [
        network.Steps(h.x[: h.unseen].astype(np.float32), y, h.held_out)
        for h, y in zip(histories, targets, strict=True)
    ]
    trained = network.train(
        steps, hidden=hidden, quantiles=head.quantiles, seed=seed, progress=progress
    )
    layers = from_torch(trained.state_dict(), flow=["lstm", "dense"]).layers
    model = Model(layers, head=head, name=name)
    errors, difference, counted = _tried(model, trained, histories, unseen=unseen > 0)
    residuals = tuple(e.residual for e in errors)
    if np.isfinite(residuals).all():
        model = Model(model.layers, head=replace(head, residuals=residuals), name=name)
    looked_at = [h.row[h.unseen :] if unseen else h.row[h.held_out :] for h in histories]
    return Trained(
        model,
        errors,
        difference,
        rows=sum(map(len, series)),
        steps=sum(map(len, histories)),
        unseen=sum(int((row >= 0).sum()) for row in looked_at),
        counted=counted,
        empty=tuple(s.name for s, h in zip(series, every, strict=True) if h not in histories),
    )


def _tried(
    model: Model, trained: network.Network, histories: Sequence[History], *, unseen: bool
) -> tuple[tuple[Errors, ...], float, Counter[str]]:
    """Errors of each step of the horizon, Trained.difference, and what the sessions counted.

    Raises ModelError where the difference is beyond DIFFERENCE.
    """
    head = model.head
    assert head is not None
    # PyTorch has no session to predict what is missing with: both are compared on held values.
    held = model
    if head.missing == "predict":
        held = Model(model.layers, head=replace(head, missing="hold"))
    rivals = evaluation.rivals(head, histories)
    tables: list[list[Array]] = []
    difference = 0.0
    counted: Counter[str] = Counter()
    for history in histories:
        said, counts = evaluation.streamed(held, history)
        difference = max(difference, _difference(head, trained, history, said))
        if held is not model:
            said, counts = evaluation.streamed(model, history)
        counted += counts
        tables.append(evaluation.tables(history, said, rivals, unseen=unseen))
    errors = tuple(
        evaluation.errors(k + 1, np.concatenate(of_all), list(rivals), len(head.quantiles))
        for k, of_all in enumerate(zip(*tables, strict=True))
    )
    return errors, difference, counted


def _difference(head: Head, trained: network.Network, history: History, said: Array) -> float:
    """The largest difference of the streamed forecasts from PyTorch's, in one series."""
    o = np.sort(trained.run(history.x).astype(np.float64), axis=-1)
    z = np.sinh(history.x[:, :1, None] + o)
    apart = np.abs((said - head.target.mean) / head.target.std - z) / np.maximum(1, np.abs(z))
    largest = float(np.max(apart, initial=0.0, where=~np.isnan(said)))
    if largest <= DIFFERENCE:
        return largest
    raise ModelError(
        f"the model forecasts otherwise here than in PyTorch {torch.__version__}: by {largest:.1g} "
        f"std, more than {DIFFERENCE:g}; please report this, with the data if you can"
    )
