"""PyTorch's modules, live or of a TorchScript file, as parts in the order of their flow.

Inside nn.Sequential the order is known. Of a module with a forward() of its own it is taken
to be the order in which __init__ made its children, and what stands behind a Linear layer is
not told: nobody can see a forward() without running it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, cast

from streamlstm.errors import UnsupportedModelError
from streamlstm.importers.pytorch.layers import (
    Part,
    is_tensor,
    leaf,
    parts_of,
    recurrent_parts,
)
from streamlstm.importers.pytorch.pickles import Made
from streamlstm.layers import Function

_NN = "torch.nn.modules."
_RECURRENT = {f"{_NN}rnn.{kind}" for kind in ("LSTM", "LSTMCell", "GRU", "GRUCell")}
_RECURRENT |= {f"{_NN}rnn.{kind}" for kind in ("RNN", "RNNCell")}  # refused by their tensors
_LEAVES = {
    f"{_NN}linear.Linear": "Linear",
    f"{_NN}batchnorm.BatchNorm1d": "BatchNorm1d",
    f"{_NN}sparse.Embedding": "Embedding",
}
FUNCTIONS: dict[str, Function] = {
    "Tanh": "tanh",
    "Sigmoid": "sigmoid",
    "ReLU": "relu",
    "Hardsigmoid": "hard_sigmoid6",
    "Softmax": "softmax",
}
# Modules that leave numbers as they are when a network is only run, or stand beside its flow.
_TRANSPARENT = (f"{_NN}dropout.", f"{_NN}linear.Identity", f"{_NN}loss.")
# What only runs another module, and the name of that one in it.
_WRAPPERS = {
    "torch.nn.parallel.data_parallel.DataParallel": "module",
    "torch.nn.parallel.distributed.DistributedDataParallel": "module",
    "torch.optim.swa_utils.AveragedModel": "module",
    "torch._dynamo.eval_frame.OptimizedModule": "_orig_mod",
}
_SEQUENTIAL = f"{_NN}container.Sequential"
# Modules in each other, and in one network: no real one is near, a hostile file may be.
_DEEPEST = 32
_MOST = 100_000
_LISTS = {f"{_NN}{name}" for name in ("container.ModuleList", "container.ModuleDict")}
_LISTS |= {f"{_NN}module.Module"}


@dataclass(frozen=True, eq=False)
class Module:
    """A module: its class's full name, own tensors and children by name, and which it is.

    options: of a live one, what torch's class was made with, as far as we look at it; None of
    a TorchScript file, which keeps it in its code.
    """

    cls: str
    tensors: Mapping[str, Any]
    children: Mapping[str, Module]
    identity: int
    options: Mapping[str, Any] | None = None

    @property
    def kind(self) -> str:
        return self.cls.rpartition(".")[2]

    @property
    def custom(self) -> bool:
        return not self.cls.startswith("torch.")

    @cached_property
    def inside(self) -> dict[str, Module]:
        """The children that may stand in the flow."""
        return {name: child for name, child in self.children.items() if not child.nothing}

    @cached_property
    def nothing(self) -> bool:
        """Whether it is sure to have no part in the flow."""
        if self.cls == _SEQUENTIAL or self.cls in _LISTS:
            return not self.inside and not self.tensors
        return self.cls.startswith(_TRANSPARENT)

    @cached_property
    def starts(self) -> bool:
        """Whether what stands first in it is known to run first."""
        if self.cls == _SEQUENTIAL:
            return next(iter(self.inside.values())).starts if self.inside else False
        return not self.custom and self.cls not in _LISTS


def unwrapped(module: Any) -> Any:
    """The module in DataParallel, torch.compile's and AveragedModel's."""
    while name := _WRAPPERS.get(_class_of(module)):
        module = getattr(module, name)
    return module


def _class_of(module: Any) -> str:
    return f"{type(module).__module__}.{type(module).__qualname__}"


def live(module: Any) -> Module:
    """The tree of a torch.nn.Module's, or of a loaded TorchScript module's."""
    module = unwrapped(module)
    cls = _class_of(module)
    if hasattr(module, "_c"):  # TorchScript's modules are all of one class in Python
        cls = _python_class(str(module._c._type()))
    temporary: set[str] = getattr(module, "_non_persistent_buffers_set", set())
    held = {**module._parameters, **module._buffers}
    options = ("eps", "dim", "max_norm")
    return Module(
        cls,
        {name: a for name, a in held.items() if a is not None and name not in temporary},
        {name: live(child) for name, child in module._modules.items() if child is not None},
        id(module),
        {name: getattr(module, name) for name in options if hasattr(module, name)},
    )


def scripted(made: Made, above: Sequence[Made] = (), done: Any = None) -> Module:
    """The tree of a TorchScript file's root object. Raises UnsupportedModelError.

    above: what made stands in; done: modules by the objects that they come from.
    """
    if len(above) > _DEEPEST or made in above:
        raise UnsupportedModelError(
            f"a TorchScript module {made.name!r} stands in itself, or too deep; "
            "save model.state_dict() instead"
        )
    done = {} if done is None else done
    if made in done:
        return cast(Module, done[made])
    state = made.state if isinstance(made.state, dict) else {}
    attributes = {str(name): a for name, a in state.items()}
    children = {
        name: scripted(a, (*above, made), done)
        for name, a in attributes.items()
        if isinstance(a, Made) and a.name.startswith("__torch__.")
    }
    tensors = {name: a for name, a in attributes.items() if is_tensor(a)}
    done[made] = Module(_python_class(made.name), tensors, children, id(made))
    return cast(Module, done[made])


def _python_class(name: str) -> str:
    """TorchScript calls its classes __torch__.torch.nn.modules.rnn.LSTM, with
    ___torch_mangle_7 in the path where one Python class was compiled several times."""
    names = name.removeprefix("__torch__.").split(".")
    return ".".join(n for n in names if not n.startswith("___torch_mangle_"))


@dataclass
class _Flow:
    """One walk through a tree; seen: which module with tensors stood where."""

    seen: dict[int, str] = field(default_factory=dict)
    visited: int = 0

    def parts(self, module: Module, path: str, told: bool, placed: bool = True) -> Iterator[Part]:
        """What module holds, in order.

        told: whether what follows it is the next part; placed: whether what it follows is the
        part before.
        """
        self.visited += 1
        if self.visited > _MOST:
            raise UnsupportedModelError(
                f"there are more than {_MOST} modules; import a part of them"
            )
        prefix = f"{path}." if path else ""
        where = path or module.kind
        if module.nothing:
            return
        if module.tensors and self.seen.setdefault(module.identity, where) != where:
            yield _refused(
                where,
                module.kind,
                f"is also module {self.seen[module.identity]!r}, and only its forward() tells "
                "where it runs; give each place a module of its own",
            )
        elif module.cls in _RECURRENT:
            parts = recurrent_parts(prefix, module.tensors)
            yield from [*parts[:-1], *(replace(last, told=told) for last in parts[-1:])]
        elif module.cls in _LEAVES:
            yield replace(_leaf(module, prefix), told=told)
        elif module.cls.startswith(f"{_NN}activation.") and module.kind in FUNCTIONS:
            yield replace(_activation(module, where, placed), told=told)
        elif module.cls == _SEQUENTIAL:
            yield from self.sequence(module, prefix, told)
        elif module.cls in _LISTS or module.custom:
            yield from self.children(module, prefix, where)
        else:
            yield _unknown(module, where)

    def sequence(self, module: Module, prefix: str, told: bool) -> Iterator[Part]:
        """The children of a Sequential: each is followed by the next one."""
        after = [*(child.starts for child in module.inside.values()), told][1:]
        for (name, child), follower_told in zip(module.inside.items(), after, strict=True):
            yield from self.parts(child, prefix + name, follower_told)

    def children(self, module: Module, prefix: str, where: str) -> Iterator[Part]:
        """What a module with a forward() of its own holds, in the order of its making."""
        if not module.tensors and not module.inside and module.custom:
            yield Part(where, module.kind, {}, None, placed=False)
        yield from parts_of(module.tensors, prefix)
        for name, child in module.children.items():
            yield from self.parts(child, prefix + name, told=False, placed=False)


def in_flow_order(module: Module) -> list[Part]:
    """The parts of a network, and those that are refused."""
    return list(_Flow().parts(module, "", True))


def _leaf(module: Module, prefix: str) -> Part:
    options = module.options or {}
    if options.get("max_norm") is not None:
        where = prefix[:-1] or module.kind
        return _refused(
            where,
            module.kind,
            f"is an Embedding with max_norm={options['max_norm']}, which changes its rows as it "
            "runs; train with max_norm=None",
        )
    return leaf(_LEAVES[module.cls], prefix, module.tensors, options)


def _activation(module: Module, where: str, placed: bool) -> Part:
    if module.kind == "Softmax" and placed:
        if module.options is None:
            return _refused(
                where,
                module.kind,
                "is a Softmax, whose dim is in the file's code, which is not read; "
                "import the live module",
            )
        if module.options["dim"] != -1:
            return _refused(
                where,
                module.kind,
                f"is a Softmax with dim={module.options['dim']}; only dim=-1 is over the numbers "
                "of one step; set it",
            )
    return Part(where, module.kind, {}, None, function=FUNCTIONS[module.kind], placed=placed)


def _unknown(module: Module, where: str) -> Part:
    known = "LSTM, GRU, their cells, Linear, Embedding, BatchNorm1d, Sequential, Dropout"
    cls = module.kind if module.cls.startswith(_NN) else module.cls
    if "parametriz" in cls:
        return _refused(where, cls, f"is a {cls}; take that off with remove_parametrizations")
    why = f"is a {cls}; only {known} and the activations {', '.join(FUNCTIONS)} can be imported"
    return _refused(where, cls, why)


def _refused(where: str, kind: str, why: str) -> Part:
    return Part(where, kind, {}, None, f"module {where!r} {why}")
