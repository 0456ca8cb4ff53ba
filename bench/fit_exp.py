"""The polynomial of kernels/functions.h: e^r - 1 = r + r^2 q(r) on |r| <= ln2 / 2.

python bench/fit_exp.py

q, of degree 4, is the one whose largest error relative to r is least. It is found by Remez'
exchange: the error of the best polynomial is largest, with signs in turn, at one point more
than there are coefficients; so guess these points, solve for a polynomial with equal errors
there, move the points to where its error is largest, and go on until they stay.
float64 is enough: the error is 1e-8, and float64's own 1e-16.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

HEADER = Path(__file__).parents[1] / "src_pyx" / "streamlstm" / "kernels" / "functions.h"

DEGREE = 4
BOUND = 1.0005 * np.log(2) / 2  # r comes out a little larger where y log2(e) was rounded
POINTS = 20_000  # even: r = 0, where the error is 0 / 0, is not among them
ROUNDS_MAX = 50


def powers(r: Array) -> Array:
    """What each coefficient of q counts in the error relative to r: [len(r), DEGREE + 1]."""
    return r[:, None] ** np.arange(1, DEGREE + 2)


def error(q: Array, r: Array) -> Array:
    """(r + r^2 q(r) - (e^r - 1)) / r"""
    return powers(r) @ q - (np.expm1(r) - r) / r


def equal_errors(r: Array) -> Array:
    """q with errors of one size at DEGREE + 2 points.

    They alternate in sign, but for one more change at 0, where r changes its own.
    """
    signs = np.sign(r) * (-1.0) ** np.arange(len(r))
    solved: Array = np.linalg.solve(np.column_stack([powers(r), signs]), (np.expm1(r) - r) / r)
    return solved[:-1]


def largest_errors(q: Array, grid: Array) -> Array:
    """The point of largest error in each run of one sign."""
    signed = error(q, grid) * np.sign(grid)
    ends = np.flatnonzero(np.diff(np.sign(signed))) + 1
    runs = np.split(np.arange(len(grid)), ends)
    return np.array([grid[run[np.argmax(np.abs(signed[run]))]] for run in runs])


def fit() -> tuple[Array, float]:
    """The coefficients of q, lowest first, and the largest error relative to r."""
    grid = np.linspace(-BOUND, BOUND, POINTS)
    points = -BOUND * np.cos(np.pi * np.arange(DEGREE + 2) / (DEGREE + 1))  # Chebyshev's
    for _ in range(ROUNDS_MAX):
        q = equal_errors(points)
        moved = largest_errors(q, grid)
        if len(moved) != len(points):
            raise ArithmeticError(f"the error has {len(moved)} extremes, not {len(points)}")
        if np.array_equal(moved, points):
            return q, float(np.abs(error(q, grid)).max())
        points = moved
    raise ArithmeticError(f"the points still move after {ROUNDS_MAX} rounds")


def main() -> None:
    q, largest = fit()
    written = {np.float32(a) for a in re.findall(r"SPLAT\((-?[\d.]+)f\)", HEADER.read_text())}
    for k, a in enumerate(q):
        state = "as in" if np.float32(a) in written else "NOT in"
        print(f"q{k} = {a:.17g}f  {state} {HEADER.name}")
    print(f"largest error relative to r: {largest:.2e}")


if __name__ == "__main__":
    main()
