"""Which kernel runs here, and why.

float64 runs by BLAS. float32 runs by the widest fused kernel that the CPU has, or by the
one that the environment variable STREAMLSTM_KERNEL names: avx512, avx2, portable or blas.

Every kernel belongs to an arithmetic class, and kernels of one class give the same bits:

    f32-fma-2      avx512, avx2     a stream's bits are its own, whatever its batch
    f32-muladd-2   portable         so too, but products are rounded before they are added
    f32-blas, f64-blas              nothing in company: BLAS sums in an order of its own
"""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from typing import Any

import numpy as np

from streamlstm.errors import EngineError
from streamlstm.kernels.table import ROWS, Row

VARIABLE = "STREAMLSTM_KERNEL"
NAMES = tuple(dict.fromkeys(row.name for row in ROWS))
FUSED = tuple(row.name for row in ROWS if row.same_bits)  # widest first


@dataclass(frozen=True)
class Choice:
    """A row of the table of kernels, and why it was taken."""

    row: Row
    why: str


def available(name: str, weights: str = "float32") -> Row | None:
    """The kernel of this name for weights of this format; None where this machine lacks it."""
    rows = (row for row in ROWS if (row.name, row.weights) == (name, weights) and row.supported)
    return next(rows, None)


def choose(dtype: np.dtype[Any]) -> Choice:
    """The kernel for models of `dtype`, by the CPU and the environment.

    Raises EngineError when STREAMLSTM_KERNEL names one that is unknown or not had here.
    """
    asked = os.environ.get(VARIABLE, "")
    if asked and asked not in NAMES:
        raise EngineError(
            f"{VARIABLE} is {asked!r}; it may be {', '.join(NAMES[:-1])} or {NAMES[-1]}"
        )
    names = [row.name for row in ROWS if row.weights == dtype.name]
    if names == ["blas"]:
        asked, why = "", f"{dtype.name} runs by BLAS"
    else:
        why = f"{VARIABLE}={asked}" if asked else "the widest that this CPU has"
    for name in (asked,) if asked else names:
        if (row := available(name, dtype.name)) is not None:
            return Choice(row, why)
    raise EngineError(f"{VARIABLE} is {asked}, but this CPU lacks it; unset it or name another")


def config() -> dict[str, Any]:
    """What show_config prints, as a dict."""
    chosen = {t: choose(np.dtype(t)) for t in ("float32", "float64")}
    return {
        "machine": platform.machine(),
        "available": [name for name in NAMES if available(name)],
        **{
            t: {"kernel": c.row.name, "arithmetic": c.row.arithmetic, "why": c.why}
            for t, c in chosen.items()
        },
    }


def show_config() -> None:
    """Print which kernels this machine has, and which one runs for each dtype and why."""
    found = config()
    print(f"{found['machine']}: {', '.join(found['available'])}")
    for t in ("float32", "float64"):
        c = found[t]
        print(f"{t}: {c['kernel']}, arithmetic class {c['arithmetic']} ({c['why']})")
