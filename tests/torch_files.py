"""PyTorch's state dicts and files without PyTorch: random tensors by its names, and a writer.

The writer assembles pickles opcode by opcode, so that neither pickle nor torch has a part in
them. tests/parity reads what torch itself writes.
"""

from __future__ import annotations

import io
import struct
import zipfile

import numpy as np

rng = np.random.default_rng(0)


def normal(*shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


def recurrent(prefix: str, inputs: int, units: int, layer: int | None = 0, *, bias=True, gates=4):
    """One layer as PyTorch names it; layer None: a cell."""
    suffix = "" if layer is None else f"_l{layer}"
    tensors = {
        f"{prefix}weight_ih{suffix}": normal(gates * units, inputs),
        f"{prefix}weight_hh{suffix}": normal(gates * units, units),
    }
    if bias:
        tensors |= {f"{prefix}bias_{k}{suffix}": normal(gates * units) for k in ("ih", "hh")}
    return tensors


lstm = recurrent


def gru(*args, **kwargs):
    return recurrent(*args, **kwargs, gates=3)


def projected(prefix: str, inputs: int, units: int, outputs: int):
    return lstm(prefix, inputs, units) | {
        f"{prefix}weight_hh_l0": normal(4 * units, outputs),
        f"{prefix}weight_hr_l0": normal(outputs, units),
    }


def peepholes(prefix: str, units: int, suffix: str = "_l0"):
    return {f"{prefix}peep_{gate}{suffix}": normal(units) for gate in "ifo"}


def linear(prefix: str, inputs: int, outputs: int, bias: bool = True):
    tensors = {f"{prefix}weight": normal(outputs, inputs)}
    return tensors | ({f"{prefix}bias": normal(outputs)} if bias else {})


def batch_norm(prefix: str, size: int):
    return {
        f"{prefix}weight": normal(size),
        f"{prefix}bias": normal(size),
        f"{prefix}running_mean": normal(size),
        f"{prefix}running_var": normal(size) ** 2,
        f"{prefix}num_batches_tracked": np.array(7),
    }


# -- files -------------------------------------------------------------------------------


def to_bfloat16(a):
    return (a.view(np.uint32) & 0xFFFF0000).view(np.float32)


def upper_halves(a) -> bytes:
    return (a.view(np.uint32) >> 16).astype("<u2").tobytes()


class Module(dict):
    """An object of TorchScript: attributes, and the class's name."""

    def __init__(self, cls: str, **attributes):
        super().__init__(attributes)
        self.cls = cls


class Call:
    """What is made by calling a name with arguments."""

    def __init__(self, name: str, *args):
        self.name, self.args = name, args


STORAGES = {"float32": "Float", "float64": "Double", "float16": "Half", "int64": "Long"}


class Writer:
    """A pickle as torch.save writes it, protocol 2, and the storages beside it."""

    def __init__(self, legacy: bool = False, bfloat16: bool = False, before: int = 0, negated=""):
        """before: numbers in front of each tensor's in its storage, in old files. negated: key of
        a tensor with the neg bit."""
        self.storages: dict[str, np.ndarray] = {}
        self.legacy, self.bfloat16, self.before = legacy, bfloat16, before
        self.negated = negated

    def pickle(self, value) -> bytes:
        return b"\x80\x02" + self.put(value) + b"."

    def put(self, value) -> bytes:
        match value:
            case None | True | False:
                return {None: b"N", True: b"\x88", False: b"\x89"}[value]
            case int():
                raw = value.to_bytes(11, "little")
                return b"\x8a" + bytes([len(raw)]) + raw
            case str():
                return b"X" + struct.pack("<I", len(value.encode())) + value.encode()
            case Module():
                made = self.name(value.cls) + b")\x81"
                return made + b"}(" + self.items(value) + b"ub"
            case dict():
                return self.name("collections.OrderedDict") + b")R(" + self.items(value) + b"u"
            case tuple():
                return b"(" + b"".join(map(self.put, value)) + b"t"
            case list():
                return b"](" + b"".join(map(self.put, value)) + b"e"
            case Call():
                return self.name(value.name) + self.put(value.args) + b"R"
            case np.ndarray():
                return self.tensor(value)
        raise TypeError(value)

    def name(self, dotted: str) -> bytes:
        module, _, name = dotted.rpartition(".")
        return f"c{module}\n{name}\n".encode()

    def items(self, value) -> bytes:
        return b"".join(
            self.put(k) + (self.tensor(a, True) if k == self.negated else self.put(a))
            for k, a in value.items()
        )

    def tensor(self, a, negated: bool = False) -> bytes:
        key = str(len(self.storages))
        self.storages[key] = np.append(normal(self.before).astype(a.dtype), a)
        kind = "BFloat16" if self.bfloat16 else STORAGES[a.dtype.name]
        pid = b"(" + self.put("storage") + self.name(f"torch.{kind}Storage")
        pid += self.put(key) + self.put("cpu") + self.put(a.size + self.before)
        view = (f"{key} view", self.before, a.size) if self.before else None
        pid += (self.put(view) if self.legacy else b"") + b"tQ"
        strides = tuple(s // a.itemsize for s in np.ascontiguousarray(a).strides)
        rest = self.put(0) + self.put(a.shape) + self.put(strides[: a.ndim])
        hooks = self.name("collections.OrderedDict") + b")R"
        made = self.name("torch._utils._rebuild_tensor_v2")
        bits = self.put({"neg": True}) if negated else b""
        return made + b"(" + pid + rest + b"\x89" + hooks + bits + b"tR"

    def raw(self, a) -> bytes:
        return upper_halves(a) if self.bfloat16 else np.ascontiguousarray(a).tobytes()


def zipped(value, *, code=False, byteorder=b"little", compression=zipfile.ZIP_STORED, **options):
    """The bytes of torch.save's zip, or, with code, of torch.jit.save's."""
    writer, out = Writer(**options), io.BytesIO()
    with zipfile.ZipFile(out, "w", compression) as z:
        z.writestr("net/data.pkl", writer.pickle(value))
        z.writestr("net/byteorder", byteorder)
        if code:
            z.writestr("net/code/__torch__.py", "raise SystemExit('code from the file was run')")
        for key, a in writer.storages.items():
            z.writestr(f"net/data/{key}", writer.raw(a))
    return out.getvalue()


def legacy(value, *, magic=0x1950A86A20F9469CFC6C, version=1001, little=True, before=0):
    """The bytes that torch.save wrote before 1.6."""
    writer = Writer(legacy=True, before=before)
    system = {"protocol_version": 1001, "little_endian": little}
    out = b"".join(map(writer.pickle, (magic, version, system, value)))
    out += writer.pickle(list(writer.storages))
    return out + b"".join(
        struct.pack("<q", a.size) + writer.raw(a) for a in writer.storages.values()
    )
