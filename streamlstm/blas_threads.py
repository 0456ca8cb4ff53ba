"""One BLAS thread, where more only harm.

BLAS threads on matrices of this size cost more than they bring (OpenBLAS #4387: 8 min
against 30 s). Setting the limit is process-wide and costs about 21 us; so a service sets
it once at its start, and an embedded engine only around calls of more than about 1 ms.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

from threadpoolctl import ThreadpoolController

_lock = threading.Lock()
_inside = 0
_limiter: object = None


def _forget_holders() -> None:
    global _lock, _inside
    # The threads that were inside, or held the lock, don't exist in a child process.
    _lock, _inside = threading.Lock(), 0


os.register_at_fork(after_in_child=_forget_holders)


@cache
def _controller() -> ThreadpoolController:
    # Only loaded libraries are found, and SciPy's BLAS must be among them. That takes
    # milliseconds: once.
    import scipy.linalg.cython_blas  # noqa: F401, PLC0415

    return ThreadpoolController()


def _take_control() -> None:
    """Make the calling thread one that threadpoolctl heeds.

    Since 3.7 it ignores all threads but the first that set OpenBLAS's limit, so that a
    limit set in one thread could not be taken back in another.
    """
    for library in _controller().lib_controllers:
        if hasattr(library, "clear_controlling_thread"):
            library.clear_controlling_thread(force=True)


def use_one_thread() -> None:
    """Limit BLAS to one thread for the life of this process."""
    _take_control()
    _controller().limit(limits=1, user_api="blas")


@contextmanager
def one_thread() -> Iterator[None]:
    """Limit BLAS to one thread while any caller is inside.

    Nested and concurrent use is counted: the last one out restores what the first one in
    found, which pairs of set and restore could get wrong.
    """
    global _inside, _limiter  # noqa: PLW0603  (the limit is the process's)
    with _lock:
        if _inside == 0:
            _take_control()
            _limiter = _controller().limit(limits=1, user_api="blas")
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0:
                _take_control()
                _limiter.restore_original_limits()  # type: ignore[attr-defined]
                _limiter = None
