"""Importers need one processor, no sockets and no clock: the other one builds the packages."""

from __future__ import annotations

import subprocess
from contextlib import suppress

import pytest

from packages import Packages

PATIENCE_S = 100.0
"""Less than a test's timeout; what takes longer ends beside the tests that come next."""


@pytest.fixture(scope="session", autouse=True)
def packages_meanwhile(request: pytest.FixtureRequest) -> Packages | None:
    if any(item.path.name == "test_packaging.py" for item in request.session.items):
        return request.getfixturevalue("packages")
    return None


def pytest_runtest_teardown(item: pytest.Function, nextitem: pytest.Item | None) -> None:
    """After the last of these tests: those that come next use processes and clocks."""
    packages = item.funcargs.get("packages_meanwhile")
    last = nextitem is None or nextitem.path.parent != item.path.parent
    if packages is not None and last:
        with suppress(subprocess.TimeoutExpired):
            packages.process.wait(PATIENCE_S)
