"""Which kernel runs here, and why.

float64 runs by BLAS. float32 runs by the widest fused kernel that the CPU has, or by the
one that the environment variable STREAMLSTM_KERNEL names: avx512, avx2, portable or blas.

Every kernel belongs to an arithmetic class, and kernels of one class give the same bits:

    f32-fma-2      avx512, avx2     a stream's bits are its own, whatever its batch
    f32-muladd-2   portable         so too, but products are rounded before they are added
    f32-blas, f64-blas              nothing promised: BLAS sums in an order of its own
"""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from typing import Any

import numpy as np

from streamlstm.errors import EngineError
from streamlstm.kernels.table import available

VARIABLE = "STREAMLSTM_KERNEL"
FUSED = ("avx512", "avx2", "portable")  # widest first


@dataclass(frozen=True)
class Choice:
    """A kernel's name, its arithmetic class, and why it was taken."""

    kernel: str
    arithmetic: str
    why: str


def choose(dtype: np.dtype[Any]) -> Choice:
    """The kernel for models of `dtype`, by the CPU and the environment.

    Raises EngineError when STREAMLSTM_KERNEL names one that is unknown or not had here.
    """
    asked = os.environ.get(VARIABLE, "")
    if asked and asked not in (*FUSED, "blas"):
        raise EngineError(f"{VARIABLE} is {asked!r}; it may be {', '.join(FUSED)} or blas")
    if dtype.itemsize != 4:
        return Choice("blas", "f64-blas", "float64 runs by BLAS")
    if asked == "blas":
        return Choice("blas", "f32-blas", f"{VARIABLE}=blas")
    for name in (asked,) if asked else FUSED:
        found = available(name)
        if found:
            why = f"{VARIABLE}={name}" if asked else "the widest that this CPU has"
            return Choice(name, found[0], why)
    raise EngineError(f"{VARIABLE} is {asked}, but this CPU lacks it; unset it or name another")


def config() -> dict[str, Any]:
    """What show_config prints, as a dict."""
    chosen = {t: choose(np.dtype(t)) for t in ("float32", "float64")}
    return {
        "machine": platform.machine(),
        "available": [name for name in FUSED if available(name)] + ["blas"],
        **{
            t: {"kernel": c.kernel, "arithmetic": c.arithmetic, "why": c.why}
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
