"""That the build under AddressSanitizer and UBSan (.ci/run) sees what it is there for.

Each plants one fault in a process of its own, which must end with the sanitizer's report.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SANITIZED = "libasan" in Path("/proc/self/maps").read_text()
pytestmark = pytest.mark.skipif(not SANITIZED, reason="not the sanitized build")

KERNEL = """
import ctypes
from streamlstm.kernels import table

WORD, INT = ctypes.c_void_p, ctypes.c_int
class Kernel(ctypes.Structure):  # kernel.h
    _fields_ = [
        *((name, WORD) for name in ("name", "arithmetic", "weights")),
        *((name, INT) for name in ("numbers", "lanes", "same_bits", "own_threads")),
        *((name, WORD) for name in ("supported", "panel_bytes", "pack", "recurrent", "dense")),
        ("activation", ctypes.CFUNCTYPE(None, INT, ctypes.c_ssize_t, ctypes.c_ssize_t, WORD, WORD)),
    ]
library = ctypes.CDLL(table.__file__)
malloc = ctypes.CDLL(None).malloc
malloc.restype, malloc.argtypes = WORD, [ctypes.c_size_t]
x, y = malloc(4 * 5), malloc(4 * 5)
ctypes.memset(x, 0, 4 * 5)
kernel = Kernel.in_dll(library, "streamlstm_portable")
kernel.activation(1, 1, NUMBERS, x + OFFSET, y)
print("done")
"""


def run(numbers: int, offset: int = 0) -> subprocess.CompletedProcess[str]:
    """A kernel's tanh of numbers that stand `offset` bytes behind the start of a buffer of 5."""
    program = KERNEL.replace("NUMBERS", str(numbers)).replace("OFFSET", str(offset))
    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )


def test_what_is_right_passes():
    assert run(5).stdout == "done\n"


def test_one_number_too_many():
    done = run(6)
    assert "heap-buffer-overflow" in done.stderr
    assert (done.returncode == 0, done.stdout) == (False, "")


def test_numbers_between_places_for_numbers():
    done = run(4, offset=1)
    assert "misaligned address" in done.stderr
    assert (done.returncode == 0, done.stdout) == (False, "")
