"""The network behind a head, trained: one recipe, from a hundred rows of one series to millions.

An LSTM layer and a dense one. The training steps of all series are cut into overlapping chunks,
each run from the zero state, its first steps not in the loss; a minibatch is a few chunks of
any series. The dense layer starts so small that the first forecast is "as it is now", which
the head adds. The loss is the pinball loss (Koenker & Bassett 1978) of all horizons' quantiles,
its smallest value on the held-out steps decides which weights are kept.

The constants below were chosen on the first rows of thirty series of NAB and on the demo's two.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from streamlstm.errors import InputError

Array = NDArray[Any]

CHUNK = 128
BURN_IN = 4  # steps at a chunk's start that only fill the state
BATCH = 8  # chunks of a minibatch
EPOCHS = 300  # as far as MOST_UPDATES allows
MOST_UPDATES = 3000  # about a minute on one core
LOOKS = 30  # at the held-out steps
PATIENCE = 12  # looks without a better one, before training ends
LEAD_IN = 4 * CHUNK  # steps before the held-out ones that fill the state there
LEARNING_RATE = 0.01
CLIP = 1.0
FIRST_DENSE = 0.1  # its initial weights, as a share of PyTorch's


@dataclass(frozen=True)
class Steps:
    """One series' steps: x [S, inputs] and targets y [S, horizons], float32; NaN: unknown.

    held_out: the first step that decides when to stop; those before it are trained on.
    """

    x: Array
    y: Array
    held_out: int


@dataclass(frozen=True)
class Progress:
    """How far training is: of `updates`, how many are `done`, and the held-out loss, `now` and at
    its `best`, as a share of what it was at first, when the forecast was "as it is now"."""

    done: int
    updates: int
    now: float
    best: float


class Network(nn.Module):  # type: ignore[misc]
    """x [batch, steps, inputs] -> [batch, steps, horizons, quantiles]."""

    def __init__(self, inputs: int, hidden: int, horizon: int, quantiles: int) -> None:
        super().__init__()
        self.shape = (horizon, quantiles)
        self.lstm = nn.LSTM(inputs, hidden, batch_first=True, dtype=torch.float32)
        self.dense = nn.Linear(hidden, horizon * quantiles, dtype=torch.float32)
        with torch.no_grad():
            self.dense.weight *= FIRST_DENSE
            self.dense.bias.zero_()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h, _ = self.lstm(x)
        o: torch.Tensor = self.dense(h)
        return o.unflatten(-1, self.shape)

    def run(self, x: Array) -> Array:
        """One series' steps x [S, inputs] from the zero state: [S, horizons, quantiles]."""
        with _alone(0), torch.no_grad():
            y: Array = self(torch.from_numpy(x.astype(np.float32))[None])[0].numpy()
        return y


def train(
    series: Sequence[Steps],
    *,
    hidden: int,
    quantiles: Sequence[float],
    seed: int,
    progress: Callable[[Progress], None] | None,
) -> Network:
    """A network trained on the steps of all series. PyTorch's own state stays as it was.

    Raises InputError where it finds no memory.
    """
    with _alone(seed):
        first = series[0]
        try:
            network = Network(first.x.shape[1], hidden, first.y.shape[1], len(quantiles))
        except RuntimeError:  # PyTorch's allocator
            what = f"a network of {hidden:,} units finds no memory; give fewer"
            raise InputError(what, command_line=f"{what}: --hidden") from None
        _train(network, series, torch.tensor(quantiles, dtype=torch.float32), progress)
    return network


def _train(
    network: Network,
    series: Sequence[Steps],
    quantiles: torch.Tensor,
    progress: Callable[[Progress], None] | None,
) -> None:
    chunks = _Chunks(series)
    held_x, held_y = _held_out(series)
    updates = min(EPOCHS * chunks.batches, MOST_UPDATES)
    optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=updates)

    def look() -> float:
        with torch.no_grad():
            return float(_pinball(network(held_x), held_y, quantiles))

    best, kept, looks_since = look(), _copied(network), 0
    unit = best or 1.0  # a constant series' loss is 0
    every = max(1, updates // LOOKS)
    for done, (x, y) in zip(range(1, updates + 1), chunks, strict=False):
        y[:, :BURN_IN] = torch.nan
        loss = _pinball(network(x), y, quantiles)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), CLIP)
        optimizer.step()
        schedule.step()
        if done % every == 0:
            now, looks_since = look(), looks_since + 1
            if now < best:
                best, kept, looks_since = now, _copied(network), 0
            if progress:
                progress(Progress(done, updates, now / unit, best / unit))
            if looks_since == PATIENCE:
                break
    network.load_state_dict(kept)


def _pinball(o: torch.Tensor, y: torch.Tensor, quantiles: torch.Tensor) -> torch.Tensor:
    """Mean of q max(y - o, 0) + (1 - q) max(o - y, 0) over what is known of y; 0 if nothing is.

    o [..., horizons, quantiles], y [..., horizons].
    """
    known = torch.isfinite(y)
    miss = torch.where(known, y, 0.0)[..., None] - o
    loss = torch.maximum(quantiles * miss, (quantiles - 1) * miss) * known[..., None]
    return loss.sum() / max(int(known.sum()) * len(quantiles), 1)


def _copied(network: Network) -> dict[str, torch.Tensor]:
    return {name: a.clone() for name, a in network.state_dict().items()}


class _Chunks:
    """Minibatches (x [chunks, CHUNK, inputs], y [chunks, CHUNK, horizons]) without end.

    Each epoch cuts anew: a series' chunks start at another step, half a chunk apart.
    """

    def __init__(self, series: Sequence[Steps]) -> None:
        # Those shorter than a chunk are followed by steps of which nothing is known.
        lengths = [s.held_out for s in series]
        rooms = [max(n, CHUNK) for n in lengths]
        ends = np.cumsum(rooms)
        self._first = ends - rooms
        self._last = ends - CHUNK
        self._x = torch.zeros(int(ends[-1]), series[0].x.shape[1])
        self._y = torch.full((int(ends[-1]), series[0].y.shape[1]), torch.nan)
        for at, n, s in zip(self._first, lengths, series, strict=True):
            self._x[at : at + n] = torch.from_numpy(s.x[:n])
            self._y[at : at + n] = torch.from_numpy(s.y[:n])
        self.batches = -(-len(self._starts(0)) // BATCH)

    def _starts(self, offset: int) -> torch.Tensor:
        hop = CHUNK // 2
        starts = [
            np.unique(np.append(np.arange(first + min(offset, last - first), last, hop), last))
            for first, last in zip(self._first, self._last, strict=True)
        ]
        return torch.from_numpy(np.concatenate(starts))

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        while True:
            starts = self._starts(int(torch.randint(CHUNK // 2, ())))
            starts = starts[torch.randperm(len(starts))]
            for some in starts.tensor_split(-(-len(starts) // BATCH)):
                at = some[:, None] + torch.arange(CHUNK)
                yield self._x[at], self._y[at]


def _held_out(series: Sequence[Steps]) -> tuple[torch.Tensor, torch.Tensor]:
    """The held-out steps of all series, x [series, S, inputs] and y [series, S, horizons].

    Each behind its lead-in, whose y is unknown here, as it is where a series has no step.
    """
    first = [max(0, s.held_out - LEAD_IN) for s in series]
    length = max(len(s.x) - at for s, at in zip(series, first, strict=True))
    x = torch.zeros(len(series), length, series[0].x.shape[1])
    y = torch.full((len(series), length, series[0].y.shape[1]), torch.nan)
    for k, (s, at) in enumerate(zip(series, first, strict=True)):
        x[k, : len(s.x) - at] = torch.from_numpy(s.x[at:])
        y[k, s.held_out - at : len(s.x) - at] = torch.from_numpy(s.y[s.held_out :])
    return x, y


@contextmanager
def _alone(seed: int) -> Iterator[None]:
    """One thread and its own random numbers, so that the same seed gives the same bits: what is
    used here is deterministic on a CPU.

    And float32 on the CPU with gradients, whatever the caller made PyTorch's default.
    """
    threads, dtype = torch.get_num_threads(), torch.get_default_dtype()
    try:
        with (
            torch.random.fork_rng(devices=[]),
            torch.inference_mode(False),
            torch.enable_grad(),
            _on_cpu(),
        ):
            torch.set_default_dtype(torch.float32)
            torch.set_num_threads(1)
            torch.manual_seed(seed)
            yield
    finally:
        torch.set_default_dtype(dtype)
        torch.set_num_threads(threads)


def _on_cpu() -> AbstractContextManager[Any]:
    """New tensors are on the CPU. Being told so costs every call of PyTorch a little."""
    cpu = torch.device("cpu")
    return nullcontext() if torch.empty(0).device == cpu else cpu
