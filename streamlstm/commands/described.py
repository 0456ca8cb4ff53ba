"""What a network and its proof are, in lines: `import` and `inspect` say the same of it."""

from __future__ import annotations

from collections.abc import Iterable

from streamlstm.commands.lines import printable, say, wrapped
from streamlstm.feature import Feature
from streamlstm.head import Head
from streamlstm.importers.source import Source
from streamlstm.importers.verify import Proof
from streamlstm.layers import GRU, LSTM, Activation, Dense, Embedding, Layer
from streamlstm.model import Model
from streamlstm.model_file import Comparison
from streamlstm.wording import counted

# What a comparison of cells takes for granted, by who tells the flow (model_file.FlowBy).
_UNPROVEN = {
    "file": "the flow is as the file tells it",
    "user": "the flow is as --flow says",
    "stack": "that nothing runs before or after them no file tells",
}
_TO_PROVE = "give sl.verify the live network to prove it"


def say_proof(proof: Proof) -> None:
    """What a comparison showed: of the network, or of its cells alone."""
    if proof.flow_by == "source":
        say("proof", told(proof))
    else:
        unproven = f"{_UNPROVEN[proof.flow_by]}: {_TO_PROVE}"
        say("compared", f"cells only, against {told(proof)}; {unproven}")


def say_compared(compared: Comparison) -> None:
    """What training showed of the network it made."""
    steps = counted(compared.steps, "step")
    largest = f"largest difference {compared.largest:.1e} std"
    say("proof", f"{compared.framework}: {steps}, {largest}")


def say_unproven(source: Source) -> None:
    if source.flow_by != "source":
        say("flow", f"not proven: {_UNPROVEN[source.flow_by]}: {_TO_PROVE}")


def told(proof: Proof) -> str:
    steps = counted(len(proof.x), "step")
    return f"{proof.framework}: {steps}, largest difference {proof.largest:.1e}"


def list_layers(source: Source) -> None:
    """All recurrent layers, with why one can't be imported."""
    found = source.recurrent()
    if not found:
        print(f"no recurrent layer in this {source.format} file")
        return
    width = max(len(printable(each.where)) for each in found)
    for each in found:
        refusal = "" if each.layer is not None else f"  can't be imported: {each.refusal}"
        print(f"  {printable(each.where):{width}}  {printable(each.text + refusal)}")


def show(model: Model) -> None:
    say("dtype", model.dtype.name)
    say("parameters", f"{model.parameters:,}")
    say("state", f"{counted(_state_bytes(model), 'byte')} per session")
    print("layers")
    for layer in model.layers:
        sizes = f"{layer.input_size:5} -> {layer.output_size:<5}"
        line = f"  {layer.kind:10} {sizes} {', '.join(_options(layer))}".rstrip()
        print(wrapped(line, 13))
    for title, features in (("inputs", model.inputs), ("outputs", model.outputs)):
        print(title)
        for feature in features:
            print(f"  {_described(feature)}")
    if model.head is not None:
        print("head")
        for what, text in _told_of_head(model.head):
            print(wrapped(f"  {what:10} {printable(text)}", 13))


def say_assumed(source: Source) -> None:
    for assumption in source.assumed:
        say("assumed", assumption)


def _state_bytes(model: Model) -> int:
    """Of a session's row: the network's numbers, and the head's in float64."""
    head = 0 if model.head is None else model.head.state_size
    return (model.state_size - head) * model.dtype.itemsize + head * 8


def _told_of_head(head: Head) -> Iterable[tuple[str, str]]:
    every = "" if head.time is None else f" of {head.step_s:g} s"
    bands = ", ".join(f"{100 * q:g} %" for q in head.quantiles)
    yield "forecasts", f"{counted(head.horizon, 'step')}{every} ahead, quantiles {bands}"
    if head.time is not None:
        yield "time", f"{head.time}; told {', '.join(head.calendar) or 'no cycle'}; {head.spacing}"
        yield "late", head.late
    yield "missing", head.missing
    yield "warm-up", counted(head.warm_up, "step")
    for k in sorted({0, len(head.residuals) - 1}) if head.residuals else ():
        r, unit = head.residuals[k], f" {head.target.unit}".rstrip()
        yield (
            f"step {k + 1}",
            f"off by {r.mae:.4g}{unit} (std {r.std:.4g}) on rows not trained on; "
            f"{100 * r.coverage:.0f} % of them within the band",
        )


def _described(feature: Feature) -> str:
    unit = f"[{feature.unit}]" if feature.unit else ""
    return printable(f"{feature.name:20} {unit:12} mean {feature.mean:.6g}  std {feature.std:.6g}")


def _options(layer: Layer) -> Iterable[str]:
    """What a layer has beyond the textbook's, in words."""
    options = layer.options()
    match layer:
        case LSTM():
            if layer.w_p is not None:
                bias = "" if layer.b_p is None else " with bias"
                yield f"projection of {counted(layer.units, 'unit')}{bias}"
            if layer.peep is not None:
                yield "peepholes"
            if layer.norm is not None:
                yield "layer norm"
            if layer.coupled:
                yield {"i": "i = 1 - f", "f": "f = 1 - i"}[options.pop("coupled")]
        case GRU():
            options.pop("reset_after", None)
            yield f"reset {'after' if layer.reset_after else 'before'} the product"
        case Embedding():
            yield f"vocabulary of {layer.vocabulary:,}"
        case Dense():
            yield options.pop("activation")
        case Activation():
            yield layer.function
            return
    if learned := [name for name in ("h0", "c0") if name in layer.tensors()]:
        yield f"learned {' and '.join(learned)}"
    for name, value in options.items():
        told = f"{value:g}" if isinstance(value, float) else value
        yield f"{name.replace('_', ' ')} {told}"
