"""What is shipped: sdist -> wheel, each built in isolation -> used with the source gone."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

from packages import REPO, git_files

USE = """
import sys
import numpy as np
import streamlstm as sl

assert sl.__file__.startswith(sys.prefix), sl.__file__
model = sl.Model([sl.LSTM(np.eye(4, 2), np.eye(4, 1), np.ones(4))], dtype="float32")
with sl.Engine(model) as engine:
    y = engine.open("pump-17").step([0.5, -0.5])
assert np.isfinite(y).all() and y.any(), y
print("stepped")
"""

pytestmark = pytest.mark.timeout(900)  # an isolated build, with the downloads it needs


def run(*command: object, cwd: Path) -> str:
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{command} failed:\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def built(packages):
    """(sdist, wheel); see packages.py."""
    if packages is None:
        pytest.skip("not a git checkout: there is no list of what must be shipped")
    return packages.wait()


def test_the_sdist_holds_every_file_of_git(built):
    with tarfile.open(built[0]) as sdist:
        held = {name.partition("/")[2] for name in sdist.getnames()}
    assert not set(git_files()) - held
    assert not {name for name in held if name.endswith((".so", ".pyc")) or "/build/" in name}


def test_the_wheel_holds_the_package_and_nothing_else(built):
    with zipfile.ZipFile(built[1]) as wheel:
        held = set(wheel.namelist())
    assert not {name for name in git_files() if name.startswith("streamlstm/")} - held
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    for source in (REPO / "src_pyx").rglob("*.pyx"):
        assert f"{source.relative_to(REPO / 'src_pyx').with_suffix('')}{suffix}" in held
    others = {name for name in held if not name.startswith("streamlstm/")}
    assert {name.split("/")[0].endswith(".dist-info") for name in others} == {True}
    assert any(name.endswith("licenses/LICENSE") for name in others)
    assert not {name for name in held if name.endswith((".pyx", ".pxd", ".c", ".h"))}


def test_the_wheel_works_with_the_source_gone(built, tmp_path):
    """In a fresh venv that sees this one's dependencies, but not its streamlstm."""
    run(sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv", cwd=tmp_path)
    python = tmp_path / "venv" / "bin" / "python"
    pip = sys.executable, "-m", "pip", "--python", python  # faster than the venv's own
    run(*pip, "install", "--no-deps", "--no-index", built[1], cwd=tmp_path)
    dependencies = {sysconfig.get_path(kind) for kind in ("purelib", "platlib")}
    own = Path(sysconfig.get_path("purelib", "venv", {"base": str(tmp_path / "venv")}))
    (own / "dependencies.pth").write_text("\n".join(sorted(dependencies)))
    assert run(python, "-c", USE, cwd=tmp_path) == "stepped\n"
    assert "stream" in run(python.parent / "streamlstm", "--help", cwd=tmp_path)
