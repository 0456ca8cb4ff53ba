"""Every bench runs: once, unmeasured. `pytest bench/` measures them."""

import subprocess
import sys
from pathlib import Path

import pytest

import bench_cells
import machine
from peers.timing import QUICK

REPO = Path(__file__).parent.parent


@pytest.mark.timeout(300)
@pytest.mark.usefixtures("untraced_processes")
def test_bench_runs(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "bench", "--benchmark-disable", "--no-cov", "-q",
         "-p", "no:cacheprovider", f"--basetemp={tmp_path}"],
        cwd=REPO,
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout


@pytest.mark.untraced
def test_the_bench_of_cells_runs():
    results = bench_cells.measure(3, 8, 2, QUICK)
    assert {"plain", "GRU, reset before", "layer norm"} <= results.keys()
    assert all(r["us"] > 0 and r["gflops"] > 0 for r in results.values())
    assert results["plain"]["share"] == 1


def test_machine_facts():
    """The JSON of results says what it was measured on."""
    facts = machine.facts()
    assert facts["cpu"]
    assert facts["blas"][0]["version"]
    assert {"python", "numpy", "scipy", "streamlstm"} <= facts["versions"].keys()
