"""PyTorch's files: tensors and the names of what holds them, without PyTorch and its pickles.

Three kinds of .pt exist. torch.save writes a zip of data.pkl and data/KEY for each storage
(before 1.6: one stream of pickles, then the storages); torch.jit.save the same zip with code/.
torch.jit.load would run __setstate__ of the file's code, and torch.load(weights_only=True) ran
code too before 2.6 (CVE-2025-32434), so all are read as data here: see pickles.py.
Facts: torch/serialization.py (_load, _legacy_load), torch/_utils.py (_rebuild_tensor_v2).
"""

from __future__ import annotations

import json
import math
import zipfile
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from streamlstm.errors import UnsupportedModelError
from streamlstm.importers.pytorch.pickles import Made, Named, parsed

Array = NDArray[Any]

_BFLOAT16 = "bfloat16"  # NumPy has none: 16 upper bits of a float32
_STORAGES = {
    "torch.DoubleStorage": "<f8",
    "torch.FloatStorage": "<f4",
    "torch.HalfStorage": "<f2",
    "torch.BFloat16Storage": _BFLOAT16,
    "torch.LongStorage": "<i8",
    "torch.IntStorage": "<i4",
    "torch.ShortStorage": "<i2",
    "torch.CharStorage": "i1",
    "torch.ByteStorage": "u1",
    "torch.BoolStorage": "?",
}
REBUILT = "torch._utils._rebuild_"  # what makes tensors has names that start so
_TENSORS = {f"{REBUILT}tensor", f"{REBUILT}tensor_v2"}
_PARAMETERS = {f"{REBUILT}parameter", f"{REBUILT}parameter_with_state"}
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # torch/serialization.py, MAGIC_NUMBER
_ZIP = b"PK\x03\x04"
_DEEPEST = 64  # of dicts and modules in each other


@dataclass(eq=False)
class _Storage:
    """Numbers that tensors share: `count` from `start` on of what the file keeps under `key`."""

    dtype: str | None
    key: str
    count: int
    start: int = 0
    raw: bytes | None = None

    @property
    def item_size(self) -> int:
        if self.dtype is None:
            raise ValueError(f"storage {self.key!r} has a dtype that is not known")
        return 2 if self.dtype == _BFLOAT16 else np.dtype(self.dtype).itemsize

    def numbers(self) -> Array:
        dtype = "<u2" if self.dtype == _BFLOAT16 else self.dtype
        return np.frombuffer(self.raw or b"", dtype, self.count, self.start * self.item_size)


def contents(path: Path) -> tuple[Any, bool]:
    """What a .pt or .pth file holds, its tensors as arrays, and whether it is TorchScript.

    Raises OSError, UnsupportedModelError.
    """
    raw = path.read_bytes()
    try:
        return _zipped(BytesIO(raw)) if raw.startswith(_ZIP) else (_legacy(BytesIO(raw)), False)
    except Exception as e:  # what a damaged or hostile file can raise has no end
        what = " ".join(str(e).split())[:200]
        raise UnsupportedModelError(
            f"{path} can't be read as a PyTorch file ({type(e).__name__}: {what}); "
            "save model.state_dict() anew"
        ) from e


def _outside(id: Any) -> _Storage | Named:
    """What a persistent id means: "storage", its class, key, device and count; before 1.6 also
    None, or key, start and count of the part of it; or "module", its class and source code."""
    if id[0] == "module" and isinstance(id[1], Named):
        return id[1]
    kind, named, key, _, count, *view = id
    if kind != "storage" or not isinstance(named, Named) or not isinstance(key, str):
        raise ValueError("it refers to something that is no storage")
    storage = _Storage(_STORAGES.get(named.name), key, count)
    if view and view[0] is not None:
        _, storage.start, storage.count = view[0]
    return storage


def _zipped(f: BytesIO) -> tuple[Any, bool]:
    size = f.seek(0, 2)
    with zipfile.ZipFile(f) as z:
        names = z.namelist()

        def member(name: str) -> bytes:
            info = z.getinfo(name)
            if info.compress_type != zipfile.ZIP_STORED or info.file_size > size:
                raise ValueError(f"member {name!r} is compressed, which PyTorch never does")
            return z.read(info)

        pickles = [n for n in names if n.endswith("/data.pkl") and n.count("/") == 1]
        if len(pickles) != 1:
            raise ValueError("it has no data.pkl")
        root = pickles[0].removesuffix("data.pkl")
        if f"{root}byteorder" in names and member(f"{root}byteorder") != b"little":
            raise ValueError("it was written on a big-endian machine")
        raw: dict[str, bytes] = {}

        def outside(id: Any) -> _Storage | Named:
            found = _outside(id)
            if isinstance(found, _Storage):
                if found.key not in raw:
                    raw[found.key] = member(f"{root}data/{found.key}")
                found.raw = raw[found.key]
            return found

        value = parsed(BytesIO(member(pickles[0])), outside)
        return _with_arrays(value), any(n.startswith(f"{root}code/") for n in names)


def _legacy(f: BytesIO) -> Any:
    """torch.save before 1.6: magic, version, system, value and keys as pickles; storages."""
    if parsed(f) != _LEGACY_MAGIC:
        raise ValueError("it does not start as PyTorch's files do")
    if parsed(f) != 1001:
        raise ValueError("its version is not 1001")
    if not parsed(f)["little_endian"]:
        raise ValueError("it was written on a big-endian machine")
    found: list[_Storage | Named] = []

    def outside(id: Any) -> _Storage | Named:
        found.append(_outside(id))
        return found[-1]

    value = parsed(f, outside)
    storages = [each for each in found if isinstance(each, _Storage)]
    item_sizes = {each.key: each.item_size for each in storages}
    raw: dict[str, bytes] = {}
    for key in parsed(f):
        count = int.from_bytes(f.read(8), "little")
        raw[key] = f.read(count * item_sizes[key])
    for each in storages:
        each.raw = raw[each.key]
    return _with_arrays(value)


def _with_arrays(value: Any, depth: int = 0, seen: dict[int, Any] | None = None) -> Any:
    """value with arrays in place of the calls that would make tensors, however deep in dicts,
    lists and objects' attributes.

    seen: what was turned and into what, by id, so that parts that are shared or hold themselves
    are turned once.
    """
    seen = {} if seen is None else seen
    if depth > _DEEPEST:
        return value
    if id(value) in seen:
        return seen[id(value)][1]
    seen[id(value)] = value, value
    turned = value
    if isinstance(value, dict):
        for key in value:
            value[key] = _with_arrays(value[key], depth + 1, seen)
    elif isinstance(value, list):
        value[:] = [_with_arrays(each, depth + 1, seen) for each in value]
    elif isinstance(value, Made):
        if value.name in _TENSORS:
            made = _tensor(*value.args[:4])
            if value.args[6:] and value.args[6].get("neg"):
                made = -made
            turned = value if made is None else made
        elif value.name in _PARAMETERS:
            turned = _with_arrays(value.args[0], depth + 1, seen)
        else:
            value.state = _with_arrays(value.state, depth + 1, seen)
    seen[id(value)] = value, turned
    return turned


def _tensor(storage: Any, start: int, size: tuple[int, ...], stride: tuple[int, ...]) -> Any:
    """The array of a strided view, a copy only for bfloat16; None of a dtype that is not known."""
    if not isinstance(storage, _Storage):
        raise ValueError("a tensor has no storage")
    if storage.dtype is None:
        return None
    numbers = (start, *size, *stride)
    if len(size) != len(stride) or not all(isinstance(n, int) and n >= 0 for n in numbers):
        raise ValueError(f"a tensor has size {size}, stride {stride}, start {start}")
    flat = storage.numbers()
    count = math.prod(size)
    last = start + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if count > len(flat) or (count and last >= len(flat)):
        raise ValueError(
            f"a tensor of size {size} is larger than its storage of {len(flat)}, "
            "unless it is an expanded one, to be saved .contiguous()"
        )
    if storage.dtype == _BFLOAT16:
        flat = _from_bfloat16(flat)
    if not count:
        return np.empty(size, flat.dtype)
    steps = [step * flat.itemsize for step in stride]
    return np.lib.stride_tricks.as_strided(flat[start:], size, steps, writeable=False)


def _from_bfloat16(a: Array) -> Array:
    return (a.astype(np.uint32) << 16).view(np.float32)


def safetensors(path: Path) -> dict[str, Array]:
    """The tensors of a .safetensors file. Raises UnsupportedModelError."""
    try:
        with safe_open(path, framework="numpy") as f:
            notes = f.metadata() or {}
            if "streamlstm" in notes:
                raise UnsupportedModelError(
                    f"{path} is our own model file; read it with load",
                    command_line=f"{path} is our own model file, and needs no import",
                )
            names = list(f.keys())
            half = {n for n in names if f.get_slice(n).get_dtype() == "BF16"}
            tensors = {n: f.get_tensor(n) for n in names if n not in half}
        tensors |= _bfloat16_tensors(path, half)
        # safetensors.torch.save_model writes one of the names that share a tensor, and notes the
        # others.
        return {n: tensors[kept] for n, kept in notes.items() if kept in tensors} | tensors
    except (SafetensorError, TypeError, ValueError, AttributeError) as e:
        raise UnsupportedModelError(f"{path} can't be read as safetensors: {e}") from e


def _bfloat16_tensors(path: Path, names: set[str]) -> dict[str, Array]:
    """These tensors of a file that safe_open found sound: 8 bytes of the header's length, the
    header in JSON, the numbers at its data_offsets."""
    if not names:
        return {}
    raw = path.read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8:start])
    tensors = {}
    for name in sorted(names):
        begin, end = header[name]["data_offsets"]
        numbers = np.frombuffer(raw[start + begin : start + end], "<u2")
        tensors[name] = _from_bfloat16(numbers).reshape(header[name]["shape"])
    return tensors
