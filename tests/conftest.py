"""What the whole suite shares: which package is tested, and how hypothesis searches."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from packages import Packages, git_files

HAS_TORCH = importlib.util.find_spec("torch") is not None

if importlib.util.find_spec("streamlstm.core.engine") is None:
    pytest.exit(
        "streamlstm is not installed: run `pip install '.[test]' && pytest`",
        returncode=pytest.ExitCode.USAGE_ERROR,
    )

# Under a shell's background job Ctrl-C is ignored, and what tests start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

# In CI the same examples every time; elsewhere new ones, and never a deadline (no timed tests).
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True)
hypothesis.settings.register_profile("dev", deadline=None)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "dev")

# tests/parity compares with the frameworks themselves, where they are installed.
collect_ignore = [] if HAS_TORCH else ["parity"]


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        "blas: looks at numbers that BLAS made (float64, or its kernel by name); CI repeats it "
        "under BLAS's kernels of other CPUs",
    )
    config.addinivalue_line(
        "markers",
        "untraced: repeats what others cover, many times, and is far faster without coverage",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("no_cov", default=False):
        return  # there pytest-cov's marker fails: it has nothing to pause
    for item in items:
        if item.get_closest_marker("untraced"):
            item.add_marker("no_cover")


@pytest.fixture(autouse=True)
def own_surroundings(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Sentences stay in one line, but where a test asks for a terminal's width; what the command
    line remembers of its files is not the user's."""
    monkeypatch.setenv("COLUMNS", "1000")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(scope="module")
def untraced_processes() -> Iterator[None]:
    """No coverage in the processes of a module that only repeats what others cover."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("COVERAGE_PROCESS_CONFIG", "COVERAGE_PROCESS_START"):
            patch.delenv(name, raising=False)
        yield


@pytest.fixture(scope="session")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Packages | None]:
    """The sdist and the wheel, under way; None without a list of what must be shipped."""
    if shutil.which("git") is None or not git_files():
        yield None
        return
    made = Packages(tmp_path_factory.mktemp("packages"))
    yield made
    made.end()


def pytest_report_header() -> list[str]:
    package = Path(importlib.util.find_spec("streamlstm").origin).parent  # type: ignore
    torch = "" if HAS_TORCH else "left out, PyTorch is not installed (pip install '.[parity]')"
    return [f"streamlstm: {package}", f"tests/parity: {torch or 'included'}"]
