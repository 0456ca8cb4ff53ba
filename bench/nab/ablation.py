"""What each part of the detector adds, and other settings of it, by the same engine.

Nothing here can be switched in the product. What is a constant of streamlstm.head is set before
an engine is made; a statistic is silenced in the session's state, by a range that nothing leaves.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import product

import numpy as np

import streamlstm as sl
from nab import corpus, detector
from nab.corpus import Array
from streamlstm import head as constants
from streamlstm.importers import from_torch
from streamlstm.readings import Series

VALUE, LEVEL, FORECAST = range(3)
RANGES = 8  # where the ranges, low and high of each, stand in a head's state (core/head.pxd)
EVERYTHING = 1e14
# asinh(z) of z as small as this is z, and the arithmetic of a power of two is exact.
SMALL = 2.0**-20


@dataclass(frozen=True)
class Variant:
    """network: which of Networks. constants: of streamlstm.head, by name. silent: of the
    three statistics."""

    network: str = "lstm"
    constants: Mapping[str, float] = field(default_factory=dict)
    silent: tuple[int, ...] = ()


VARIANTS = {
    "all of it": Variant(),
    "LSTM -> last value": Variant("last_value"),
    "LSTM untrained": Variant("untrained"),
    "no time of day": Variant("no_calendar"),
    "no time gap": Variant("no_gap"),
    "z, not asinh z": Variant("linear"),
    "no forecast": Variant(constants={"FORECAST_WEIGHT": 0.0}),
    "no level": Variant(silent=(LEVEL,)),
    "no level, LSTM -> last value": Variant("last_value", silent=(LEVEL,)),
    "no value": Variant(silent=(VALUE,)),
    "forecast only": Variant(silent=(VALUE, LEVEL)),
    "forecast only, LSTM -> last value": Variant("last_value", silent=(VALUE, LEVEL)),
    "level only": Variant(silent=(VALUE, FORECAST)),
    "value only": Variant(silent=(LEVEL, FORECAST)),
    "forecast weighs 1": Variant(constants={"FORECAST_WEIGHT": 1.0}),
    "no smoothing": Variant(constants={"SMOOTHING": 1.0}),
    "no hold": Variant(constants={"QUIET": 0}),
    "no forgetting": Variant(constants={"FORGET": 0.0}),
    "forgets 4 times as fast": Variant(constants={"FORGET": 4 * constants.FORGET}),
}


# Settings to choose from.
GRID = {
    f"over {n:g} steps, forgets {forget:g}, forecast weighs {weight:g}, holds {hold}": Variant(
        constants={
            "SMOOTHING": n,
            "FORGET": forget,
            "FORECAST_WEIGHT": weight,
            "QUIET": hold,
        }
    )
    for n, forget, weight, hold in product(
        (4.0, 6.0, 8.0), (0.0, 5e-5, 1e-4), (0.25, 0.5, 1.0), (50, 100, 150)
    )
}
# The product's is one of them.
(IN_USE,) = (
    name
    for name, variant in GRID.items()
    if all(vars(constants)[constant] == value for constant, value in variant.constants.items())
)


def detect(
    series: corpus.Series, seed: int, variants: Mapping[str, Variant] = VARIANTS
) -> dict[str, Array]:
    """Scores [rows] of a file by each variant."""
    own = detector.readings(series)
    networks = Networks(own, seed)
    return {
        name: stream(variant, getattr(networks, variant.network), own)
        for name, variant in variants.items()
    }


def stream(variant: Variant, model: sl.Model, series: Series) -> Array:
    """detector.stream, by a variant."""
    with patched(variant.constants), sl.Engine(model, max_sessions=1) as engine:
        session = engine.open(series.name)
        events = series.events()
        first = detector.stream(session, events[:1])
        silence(session, variant.silent)
        return np.concatenate([first, detector.stream(session, events[1:])])


class Networks:
    """The variants' models of one file, each trained when it is first asked for."""

    def __init__(self, series: Series, seed: int) -> None:
        self.series = series
        self.seed = seed

    @cached_property
    def lstm(self) -> sl.Model:
        return detector.train(self.series, self.seed)

    @property
    def head(self) -> sl.Head:
        assert self.lstm.head is not None
        return self.lstm.head

    @cached_property
    def last_value(self) -> sl.Model:
        return detector.last_value(self.head)

    @cached_property
    def no_calendar(self) -> sl.Model:
        return detector.train(self.series, self.seed, calendar=())

    @cached_property
    def no_gap(self) -> sl.Model:
        return detector.train(self.series, self.seed, spacing="grid", missing="skip")

    @cached_property
    def untrained(self) -> sl.Model:
        import torch  # noqa: PLC0415

        from streamlstm import training  # noqa: PLC0415

        torch.manual_seed(self.seed)
        sizes = (self.head.network_inputs, training.HIDDEN, 1, len(self.head.quantiles))
        network = training.network.Network(*sizes)
        return sl.Model(
            from_torch(network.state_dict(), flow=["lstm", "dense"]).layers, head=self.head
        )

    @cached_property
    def linear(self) -> sl.Model:
        """Trained on z; its head's a is so small a share of z that asinh leaves it as it is."""
        from streamlstm import training  # noqa: PLC0415
        from streamlstm.training.history import History  # noqa: PLC0415

        target = replace(self.head.target, std=self.head.target.std / SMALL)
        head = replace(self.head, target=target, residuals=())
        history = History.of(head, detector.probation(self.series), 0)
        x, y = history.x.astype(np.float32), history.targets(1) / np.float32(SMALL)
        x[:, :2] /= SMALL
        steps = training.network.Steps(x, y, history.held_out)
        lstm, dense = from_torch(
            training.network.train(
                [steps],
                hidden=training.HIDDEN,
                quantiles=head.quantiles,
                seed=self.seed,
                progress=None,
            ).state_dict(),
            flow=["lstm", "dense"],
        ).layers
        assert isinstance(lstm, sl.LSTM)
        assert isinstance(dense, sl.Dense)
        w_x = lstm.w_x.copy()
        w_x[:, :2] /= SMALL
        scaled = (replace(lstm, w_x=w_x), replace(dense, w=dense.w * SMALL, b=dense.b * SMALL))
        return sl.Model(scaled, head=head, dtype="float32")


@contextmanager
def patched(values: Mapping[str, float]) -> Iterator[None]:
    """Constants of streamlstm.head changed while engines are made."""
    before = {name: getattr(constants, name) for name in values}
    try:
        vars(constants).update(values)
        yield
    finally:
        vars(constants).update(before)


def silence(session: sl.Session, statistics: tuple[int, ...]) -> None:
    """Make statistics seem to have been everywhere."""
    state = session.state()
    numbers = state.numbers.copy()
    head = session.engine.model.head
    assert head is not None
    for k in statistics:
        low = len(numbers) - head.state_size + RANGES + 2 * k
        numbers[low : low + 2] = -EVERYTHING, EVERYTHING
    session.restore(replace(state, numbers=numbers))
