"""After os.fork: the child is refused, whatever the parent's threads were doing."""

from __future__ import annotations

import subprocess
import sys

from networks import stacked

FORKS = """
import os, sys, threading
import numpy as np
import streamlstm as sl
from streamlstm import errors

model = sl.load(sys.argv[1])
engine = sl.Engine(model)
session, busy = engine.open("a"), engine.open("busy")
group = engine.group([session])
x = np.ones((2000, model.input_size), "f4")
going = True

def work():
    # Holds the engine's lock nearly always, and the limit of BLAS threads.
    while going:
        busy.run(x)
        engine.open("short").close()

def child():
    calls = [
        lambda: session.step(x[0]),
        lambda: session.run(x),
        lambda: session.seq,
        lambda: session.state(),
        lambda: session.reset(),
        lambda: session.fork("twin"),
        lambda: session.take_over(),
        lambda: engine.open("b"),
        lambda: engine.group([session]),
        lambda: engine.step([session], x[:1]),
        lambda: group.step(x[:1]),
        lambda: group.seqs,
    ]
    for call in calls:
        try:
            call()
            return 1
        except errors.ForkedProcessError as e:
            if "created before os.fork" not in str(e):
                return 2
    session.close()
    engine.close()
    with sl.Engine(model) as own:
        own.open("a").run(x)
    return 0

thread = threading.Thread(target=work)
thread.start()
codes = []
for _ in range(10):
    pid = os.fork()
    if pid == 0:
        try:
            os._exit(child())
        finally:
            os._exit(3)
    codes.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
going = False
thread.join()
session.step(x[0])
assert codes == [0] * 10, codes
print("passed")
"""


def test_a_forked_child_is_refused(tmp_path):
    stacked(units=64, layers=2).save(tmp_path / "model.safetensors")
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", FORKS, "model.safetensors"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "passed\n"), done.stderr


def test_a_child_that_exits_by_the_with_block(tmp_path):
    """Leaving `with Engine(...)` in the child neither hangs nor hides the real error."""
    stacked().save(tmp_path / "model.safetensors")
    script = """
import os, sys
import streamlstm as sl
with sl.Engine(sl.load("model.safetensors")) as engine:
    pid = os.fork()
    if pid == 0:
        sys.exit(7)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    engine.open("a")
sys.exit(code)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, timeout=100, check=False
    )
    assert (done.returncode, done.stderr) == (7, b"")
