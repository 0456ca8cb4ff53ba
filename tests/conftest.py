"""What the whole suite shares: which package is tested, and how hypothesis searches."""

from __future__ import annotations

import importlib.util
import os
import signal
from pathlib import Path

import hypothesis
import pytest

HAS_TORCH = importlib.util.find_spec("torch") is not None

if importlib.util.find_spec("streamlstm._engine") is None:
    found = importlib.util.find_spec("streamlstm")
    where = Path(found.origin).parent if found and found.origin else "nowhere"
    pytest.exit(
        f"streamlstm is found at {where}, without its compiled modules: run "
        "`pip install '.[test]' && pytest` (not `python -m pytest`, which puts this folder first)",
        returncode=pytest.ExitCode.USAGE_ERROR,
    )

# Python processes that tests start must not find ./streamlstm first either.
os.environ["PYTHONSAFEPATH"] = "1"

# Under a shell's background job Ctrl-C is ignored, and what tests start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

# In CI the same examples every time; elsewhere new ones, and never a deadline (no timed tests).
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True)
hypothesis.settings.register_profile("dev", deadline=None)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "dev")

# tests/parity compares with the frameworks themselves, where they are installed.
collect_ignore = [] if HAS_TORCH else ["parity"]


def pytest_report_header() -> list[str]:
    package = Path(importlib.util.find_spec("streamlstm").origin).parent  # type: ignore
    torch = "" if HAS_TORCH else "left out, PyTorch is not installed (pip install '.[parity]')"
    return [f"streamlstm: {package}", f"tests/parity: {torch or 'included'}"]
