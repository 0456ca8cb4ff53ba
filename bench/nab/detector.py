"""Our detector on one NAB file, as a strict stream and with one setting for all files.

A network is trained on the file's probation rows alone, by streamlstm.training as it is. Then the
file is streamed through an engine from its first row on: each row is one reading and one step, in
the order of the file, and its score is what the session answers, before the next row is read.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

import streamlstm as sl
from nab import corpus, scorer
from streamlstm.readings import Series
from streamlstm.times import seconds

if TYPE_CHECKING:
    from streamlstm.head import Head

Array = NDArray[Any]

# Rows are scored one by one, so each must make a step: those that come again or go back in time
# too, and none in between. How long it was since the row before is an input of the network.
POLICIES: dict[str, Any] = {"spacing": "gap", "late": "step"}


def readings(series: corpus.Series) -> Series:
    """A NAB file as streamlstm.readings would read it."""
    times = np.array([seconds(timestamp) for timestamp in series.timestamps])
    lines = np.arange(2, 2 + len(times))
    return Series("value", times, series.values[:, None], lines, "timestamp")


def probation(series: Series) -> Series:
    """The rows that may be learned from beforehand."""
    return series.first(scorer.probation(len(series)))


def train(series: Series, seed: int, **options: Any) -> sl.Model:
    """A model of the file that has seen its probation rows. options: of training.fit.

    It warms up until they are over. Raises InputError where they are too few.
    """
    from streamlstm import training  # noqa: PLC0415  (streaming needs no torch)

    known = probation(series)
    model = training.fit([known], target="value", unseen=0, seed=seed, **POLICIES | options)
    assert model.head is not None
    return sl.Model(model.layers, head=replace(model.head, warm_up=len(known)))


def last_value(head: Head) -> sl.Model:
    """A network that says 0, which forecasts the last value."""
    lstm = sl.LSTM(np.zeros((4, head.network_inputs)), np.zeros((4, 1)), np.zeros(4))
    dense = sl.Dense(np.zeros((head.network_outputs, 1)), np.zeros(head.network_outputs))
    return sl.Model([lstm, dense], head=head, dtype="float32")


def stream(session: sl.Session, events: Array) -> Array:
    """Scores [rows] of readings [rows, inputs], one step each."""
    score = [feature.name for feature in session.engine.model.outputs].index("score")
    return np.array([session.step(event)[score] for event in events])


def detect(series: corpus.Series, seed: int) -> tuple[Array, dict[str, int]]:
    """Scores [rows] of a file, and what its session counted (head.COUNTERS)."""
    own = readings(series)
    with sl.Engine(train(own, seed), max_sessions=1) as engine:
        session = engine.open(series.name)
        return stream(session, own.events()), session.counters()
