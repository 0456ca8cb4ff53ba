"""Error of the kernels' exp, tanh and sigmoid over all float32 values, in ULP.

python bench/ulp.py [--every N] [--jobs N] [--kernels NAME ...]

Each value's result is compared with NumPy's in float64, which is off by less than a
millionth of such an ULP. An ULP is the spacing of float32 at the exact result. Inside the
kernels denormals count as zero, and e^y stops at y = +-87: sigmoid below -87, where it is
less than 2e-38, is held to that absolute error instead. exp is asked from -64 to 87: of
smaller ones the kernels take only 1 + e^y, and the one without FMA may flush a part of them.
--every N takes each N-th value; all of them take some minutes.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamlstm import kernels
from streamlstm.kernels import table

Array = NDArray[Any]

CHUNK = 1 << 15  # floats at a time, to stay within the caches
ALL = 1 << 32
SMALLEST_NORMAL = np.float32(2.0**-126)
EXP_MIN, EXP_MAX = -64.0, 87.0
SIGMOID_TINY = 2e-38  # what sigmoid may answer below -87

EXACT: dict[str, Callable[[Array], Array]] = {
    "exp": np.exp,
    "tanh": np.tanh,
    "sigmoid": lambda z: 1 / (1 + np.exp(-z)),
}


@dataclass(frozen=True)
class Worst:
    """The largest error found, and where."""

    ulp: float = 0.0
    x: float = 0.0

    def or_worse(self, other: Worst) -> Worst:
        return other if other.ulp > self.ulp else self


def measured(function: str, x: Array) -> Array:
    """The values whose results are held to ULP."""
    magnitude = np.abs(x)
    normal = (magnitude >= SMALLEST_NORMAL) | (magnitude == 0)
    if function == "exp":
        return normal & (x >= EXP_MIN) & (x <= EXP_MAX)
    if function == "sigmoid":
        return normal & (x >= -EXP_MAX)
    return normal


def ulp_of(exact: Array) -> Array:
    """Spacing of float32 at `exact`, which is no denormal, as float64."""
    exponent = exact.astype(np.float32).view(np.int32) & 0x7F800000
    return np.maximum(exponent.view(np.float32), SMALLEST_NORMAL).astype(float) * 2.0**-23


def special_values_hold(kernel: str) -> bool:
    """NaN stays, infinities and denormals give what their limits are."""
    denormals = np.float32([-1.1e-38, -1e-45, 1e-45, 1.1e-38])
    inf, nan = np.float32([-np.inf, np.inf]), np.float32([np.nan])
    apply = partial(table.apply, kernels.available(kernel))
    return bool(
        all(np.isnan(apply(function, nan)).all() for function in EXACT)
        and (apply("tanh", inf) == [-1, 1]).all()
        and (apply("sigmoid", inf) <= [SIGMOID_TINY, 1]).all()
        and (apply("exp", denormals) == 1).all()
        and (np.abs(apply("tanh", denormals)) == 0).all()
        and (apply("sigmoid", denormals) == 0.5).all()
    )


def worst_of(names: list[str], every: int, start: int) -> dict[tuple[str, str], Worst]:
    """{(kernel, function): its worst} of the CHUNK values, `every` apart, from bits `start`."""
    bits = np.arange(start, min(start + CHUNK * every, ALL), every, dtype=np.uint64)
    x = bits.astype(np.uint32).view(np.float32)
    found = {}
    with np.errstate(all="ignore"):
        for function, exactly in EXACT.items():
            taken = x[measured(function, x)]
            exact = exactly(taken.astype(float))
            ulp = ulp_of(exact)
            low = x[x < -EXP_MAX] if function == "sigmoid" else x[:0]
            for kernel in names:
                found[kernel, function] = worst(kernel, function, taken, exact, ulp)
                tails = table.apply(kernels.available(kernel), function, low)
                if not (np.abs(tails) <= SIGMOID_TINY).all():
                    found[kernel, function] = Worst(np.inf, float(low[0]))
    return found


def worst(kernel: str, function: str, x: Array, exact: Array, ulp: Array) -> Worst:
    if not x.size:
        return Worst()
    error = np.abs(table.apply(kernels.available(kernel), function, x) - exact) / ulp
    at = int(np.argmax(error))  # of NaN, if there is one
    return Worst(float(np.nan_to_num(error[at], nan=np.inf)), float(x[at]))


def progress(results: Iterator[Any], count: int) -> Iterator[Any]:
    for k, result in enumerate(results):
        if sys.stderr.isatty():
            print(f"\r{k / count:.0%} ", end="", file=sys.stderr, flush=True)
        yield result


def main() -> None:
    here = [name for name in kernels.FUSED if kernels.available(name)]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--every", type=int, default=1, help="take each N-th value only")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--kernels", nargs="+", choices=here, default=here)
    args = parser.parse_args()
    starts = range(0, ALL, CHUNK * args.every)
    total: dict[tuple[str, str], Worst] = {}
    with ProcessPoolExecutor(args.jobs) as pool:
        chunks = pool.map(partial(worst_of, args.kernels, args.every), starts, chunksize=64)
        for found in progress(chunks, len(starts)):
            for key, one in found.items():
                total[key] = total.get(key, Worst()).or_worse(one)
    print(f"{'kernel':10}{'function':10}{'worst ULP':>10}   at")
    for (kernel, function), one in total.items():
        print(f"{kernel:10}{function:10}{one.ulp:10.3f}   {one.x:.9g} ({one.x.hex()})")
    broken = [kernel for kernel in args.kernels if not special_values_hold(kernel)]
    print(f"NaN, infinities, denormals: {'wrong in ' + ', '.join(broken) if broken else 'right'}")
    raise SystemExit(bool(broken))


if __name__ == "__main__":
    main()
