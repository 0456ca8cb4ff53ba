"""`python` started in a clone finds ./streamlstm first, which has no compiled modules."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import streamlstm

PACKAGE = Path(streamlstm.__file__).parent
STEP = """
import numpy as np
import streamlstm as sl

model = sl.Model([sl.LSTM(np.eye(4, 2), np.eye(4, 1), np.ones(4))])
with sl.Engine(model) as engine:
    engine.open("pump-17").step([0.5, -0.5])
print(sl.__file__)
"""


@pytest.fixture
def clone(tmp_path):
    """A source folder beside nothing compiled."""
    left_out = shutil.ignore_patterns("*.so", "__pycache__")
    shutil.copytree(PACKAGE, tmp_path / "clone" / "streamlstm", ignore=left_out)
    return tmp_path / "clone"


@pytest.fixture
def installed(tmp_path):
    """A folder that holds what is installed beside NumPy; `installed / "streamlstm"` is not yet."""
    folder = tmp_path / "site-packages"
    folder.mkdir()
    for path in Path(np.__file__).parent.parent.iterdir():
        if "streamlstm" not in path.name:
            (folder / path.name).symlink_to(path)
    return folder


def run(*arguments: str, cwd: Path, installed: Path) -> subprocess.CompletedProcess[str]:
    """Python without any other packages than the installed ones."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("COV")}
    return subprocess.run(
        [sys.executable, "-S", *arguments],
        cwd=cwd,
        env=environment | {"PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_installed_package_takes_its_place(clone, installed):
    (installed / "streamlstm").symlink_to(PACKAGE)
    done = run("-c", STEP, cwd=clone, installed=installed)
    assert done.stdout == f"{installed / 'streamlstm' / '__init__.py'}\n", done.stderr
    (clone / "script.py").write_text(STEP)
    assert run("script.py", cwd=clone, installed=installed).stdout == done.stdout
    done = run("-m", "streamlstm", "--help", cwd=clone, installed=installed)
    assert "Stateful LSTM sessions" in done.stdout, done.stderr


def test_where_none_is_installed_it_says_what_to_do(clone, installed):
    assert run("-c", "import streamlstm.errors", cwd=clone, installed=installed).returncode == 0
    done = run("-c", STEP, cwd=clone, installed=installed)
    assert done.returncode == 1
    assert "compiled modules are missing or out of date beside" in done.stderr
    assert "pip install" in done.stderr
    shutil.copytree(clone / "streamlstm", installed / "streamlstm")  # another one of its kind
    assert "are missing" in run("-c", STEP, cwd=clone, installed=installed).stderr
