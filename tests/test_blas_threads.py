"""One BLAS thread: for the life of a process, or while anyone is inside."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest
import threadpoolctl

from streamlstm import blas_threads


def counts() -> list[int]:
    return [
        library["num_threads"]
        for library in threadpoolctl.threadpool_info()
        if library["user_api"] == "blas"
    ]


@pytest.fixture(autouse=True)
def two_threads():
    """What there is to restore, on a machine of one core too."""
    blas_threads._take_control()
    with blas_threads._controller().limit(limits=2, user_api="blas"):
        if set(counts()) != {2}:
            pytest.skip("this BLAS was built without threads")
        yield
        blas_threads._take_control()


def test_one_thread_inside_and_as_before_outside():
    with blas_threads.one_thread():
        assert set(counts()) == {1}
        with blas_threads.one_thread():
            assert set(counts()) == {1}
        assert set(counts()) == {1}
    assert set(counts()) == {2}


def test_the_last_one_out_restores():
    """The first one in leaves first; the limit stays until the second has left."""
    inside, leave = threading.Event(), threading.Event()

    def second() -> None:
        with blas_threads.one_thread():
            inside.set()
            leave.wait()

    thread = threading.Thread(target=second)
    with blas_threads.one_thread():
        thread.start()
        inside.wait()
    assert set(counts()) == {1}
    leave.set()
    thread.join()
    assert set(counts()) == {2}


def test_any_thread_may_come_first():
    """Whichever thread set a limit before."""
    found = []

    def first() -> None:
        with blas_threads.one_thread():
            found.append(set(counts()))
        found.append(set(counts()))

    for _ in range(3):
        thread = threading.Thread(target=first)
        thread.start()
        thread.join()
        first()
    assert found == [{1}, {2}] * 6


def test_an_error_inside_restores_too():
    def fail() -> None:
        with blas_threads.one_thread():
            raise ValueError

    with pytest.raises(ValueError):  # noqa: PT011
        fail()
    assert set(counts()) == {2}


def test_the_limit_of_a_process_reaches_blas_that_is_loaded_later(tmp_path):
    """The service sets it before it loads a model, and with it SciPy's BLAS."""
    script = """
from streamlstm import blas_threads
blas_threads.use_one_thread()
import scipy.linalg, streamlstm.engine, threadpoolctl
print({lib["num_threads"] for lib in threadpoolctl.threadpool_info() if lib["user_api"] == "blas"})
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, check=True, capture_output=True, text=True
    )
    assert done.stdout == "{1}\n"
