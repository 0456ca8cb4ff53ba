"""pytest bench/ --benchmark-json=FILE: the results carry the facts of the machine."""

from typing import Any

import pytest

import machine
from streamlstm import blas_threads

# (inputs, units, layers) of the networks that are measured.
SIZES = [
    (8, 16, 1),
    (16, 32, 1),
    (16, 64, 1),
    (32, 128, 1),
    (64, 256, 1),
    (128, 512, 1),
    (256, 1024, 1),
    (32, 128, 2),
    (40, 256, 3),
]


def pytest_benchmark_update_machine_info(machine_info: dict[str, Any]) -> None:
    machine_info["streamlstm"] = machine.facts()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "size" in metafunc.fixturenames:
        metafunc.parametrize("size", SIZES, ids=lambda s: f"I{s[0]}-H{s[1]}-L{s[2]}")


@pytest.fixture(scope="session", autouse=True)
def one_blas_thread() -> None:
    """As a service runs."""
    blas_threads.use_one_thread()
