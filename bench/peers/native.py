"""The C files of this folder, compiled when they are needed, and the kernel they drive."""

from __future__ import annotations

import ctypes
import os
import subprocess
import weakref
from collections.abc import Sized
from pathlib import Path
from typing import Any

import numpy as np

from peers.cells import Array, Cell
from streamlstm import kernels
from streamlstm.kernels import pack, table
from streamlstm.kernels.table import Row

HERE = Path(__file__).parent
KERNEL_H = HERE.parents[1] / "src_pyx" / "streamlstm" / "kernels"
Pointer = ctypes.c_void_p
LANES_MAX = 16


def compiled(source: str, folder: Path) -> Path:
    """A shared library of one C file, for this machine. Raises CalledProcessError."""
    library = folder / Path(source).with_suffix(".so").name
    flags = ["-O3", "-march=native", "-shared", "-fPIC", f"-I{KERNEL_H}"]
    cc = os.environ.get("CC", "cc")
    subprocess.run([cc, *flags, str(HERE / source), "-o", str(library)], check=True)
    return library


def load_loops(folder: Path) -> ctypes.CDLL:
    """loops.c with its signatures."""
    loops = ctypes.CDLL(str(compiled("loops.c", folder)))
    size, integer, count = ctypes.c_ssize_t, ctypes.c_int, ctypes.c_long
    signatures: dict[str, tuple[Any, list[Any]]] = {
        "read_floats": (ctypes.c_float, [Pointer, size, count]),
        "multiply_add": (ctypes.c_float, [count]),
        "multiply_adds": (integer, []),
        "new_network": (Pointer, [Pointer, size, size, Pointer, Pointer, size, size]),
        "add_layer": (None, [Pointer, integer, integer, size, Pointer, Pointer]),
        "run_network": (Pointer, [Pointer, count]),
        "free_network": (None, [Pointer]),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(loops, name)
        function.restype, function.argtypes = result, arguments
    return loops


class KernelLoop:
    """The kernel that streamlstm runs here, looped over a cell's events in C.

    It is taken from the package's own compiled module, so it is the one that is shipped.
    steps: how many a call of the kernel takes; it divides the number of events.
    without_inputs: only the recurrent half of the gates.
    """

    def __init__(
        self, loops: ctypes.CDLL, cell: Cell, *, steps: int = 1, without_inputs: bool = False
    ) -> None:
        self.loops, self.cell = loops, cell
        row, kernel = self.find_kernel()
        # One row a stream, h and c of all layers, as in the arena.
        self.states = pack.aligned((cell.batch, 2 * cell.units * cell.layers))
        self.states[:] = 0
        starts = self.states.ctypes.data + self.states.strides[0] * np.arange(cell.batch)
        self.rows = starts.astype(np.uintp)
        places = self.rows.ctypes.data, cell.events.ctypes.data
        padded = -(-cell.units // LANES_MAX) * LANES_MAX
        self.network = loops.new_network(
            kernel, cell.batch, steps, *places, len(cell.events), padded
        )
        weakref.finalize(self, loops.free_network, self.network)
        self.weights: list[Array] = []
        for k, layer in enumerate(cell.model.layers):
            inputs = 0 if without_inputs else layer.input_size
            gates = np.concatenate([layer.w_x[:, :inputs], layer.w_h], axis=1)
            w = pack.packed(row, gates.reshape(4, cell.units, -1))
            b = pack.packed(row, layer.b.reshape(4, cell.units, 1))
            h = 2 * cell.units * k
            loops.add_layer(self.network, inputs, cell.units, h, w.ctypes.data, b.ctypes.data)
            self.weights += [w, b]

    @staticmethod
    def find_kernel() -> tuple[Row, int]:
        """Its row, and the address of what this is in C."""
        row = kernels.choose(np.dtype(np.float32)).row
        if row.name not in kernels.FUSED:
            raise SystemExit(f"{row.name} is no fused kernel; unset {kernels.VARIABLE}")
        # Loaded already, and never unloaded.
        found = ctypes.c_char.in_dll(ctypes.CDLL(table.__file__), f"streamlstm_{row.name}")
        return row, ctypes.addressof(found)

    def loop(self, events: Sized) -> None:
        """As many calls of the kernel as there are events."""
        self.outputs = self.loops.run_network(self.network, len(events))

    @property
    def y(self) -> Array:
        """The last step's outputs [batch, H], copied; of calls of one step."""
        shape = (self.cell.batch, self.cell.units)
        floats = ctypes.cast(self.outputs, ctypes.POINTER(ctypes.c_float))
        return np.ctypeslib.as_array(floats, shape).copy()
