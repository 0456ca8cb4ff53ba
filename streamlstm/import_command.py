"""`streamlstm import` and `inspect`: what a file of any format holds, and a model file of it."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from streamlstm import csv_events, model_file
from streamlstm.errors import ModelError, UnsupportedModelError
from streamlstm.feature import Feature
from streamlstm.head import Head
from streamlstm.importers import model_of, open_source
from streamlstm.importers.source import Source
from streamlstm.importers.verify import Proof, verify
from streamlstm.layers import GRU, LSTM, Activation, Dense, Embedding, Layer
from streamlstm.model import Model
from streamlstm.wording import counted

STEPS = 500
# As a share of the largest answer, or of 1 where that is smaller. Float32 rounds by 6e-8; a sum
# of thousands of weights and hundreds of steps make that 1e-6 to 1e-5, a swapped gate or bias
# tenths. And a tenth of what load accepts, so that the file loads on other processors, too.
DIFFERENCE = 1e-4
# As a share of the largest answer, where the framework says that it rounds to 8 bits on its way,
# which we don't: onnxruntime's DynamicQuantizeLSTM was off by 0.005 to 0.015, with swapped gates
# by 0.2 and more.
QUANTIZED_DIFFERENCE = 0.05
# What a comparison of cells takes for granted, by who tells the flow (model_file.FlowBy).
_UNPROVEN = {
    "file": "the flow is as the file tells it",
    "user": "the flow is as --flow says",
    "stack": "that nothing runs before or after them no file tells",
}
_TO_PROVE = "give sl.verify a live module to prove it"


def run_import(args: argparse.Namespace) -> int:
    """Write a model file of a foreign one. Raises StreamLSTMError, OSError."""
    folder = Path(args.out).absolute().parent
    if not folder.is_dir():  # the proof may take a while
        raise FileNotFoundError(f"{args.out} can't be written: there is no folder {folder}")
    source = open_source(args.file, flow=args.flow)
    model = model_of(
        source,
        args.select,
        inputs=args.inputs,
        outputs=args.outputs,
        name=args.name or Path(args.file).stem,
    )
    _say("format", source.format if args.select is None else f"{source.format}, {args.select}")
    _show(model)
    _say_assumed(source)
    proof = _proven(model, source, args)
    model.save(args.out, proof=proof)
    _say("written", args.out)
    return 0


def _proven(model: Model, source: Source, args: argparse.Namespace) -> Proof | None:
    """The proof for the model's file, None where there is none; says what was found.

    Raises ModelError where framework and model differ.
    """
    steps, seed, x = args.steps or STEPS, args.seed or 0, None
    if args.data is not None:
        x = csv_events.read_events(args.data, [f.name for f in model.inputs], steps)
    try:
        proof = verify(model, source, select=args.select, x=x, steps=steps, seed=seed)
    except UnsupportedModelError as e:
        _say("proof", f"not compared: {e.command_line}")
        if args.select is None:
            _say_unproven(source)
        return None
    largest_answer = float(np.max(np.abs(proof.y)))
    allowed = (
        QUANTIZED_DIFFERENCE * largest_answer
        if source.quantizes
        else DIFFERENCE * max(1.0, largest_answer)
    )
    if not (np.isfinite(proof.largest) and proof.largest <= allowed):
        raise ModelError(
            f"{args.out} was not written: the largest difference to {_told(proof)}, beyond "
            f"{allowed:.1g}; where a few --steps differ less, the network magnifies rounding: "
            "give real events with --data, or fewer --steps"
        )
    _say_proof(proof)
    return None if source.quantizes else proof  # load would find it off


def run_list(args: argparse.Namespace) -> int:
    """List a foreign file's recurrent layers. Raises UnsupportedModelError, OSError."""
    _list(open_source(args.file, flow=args.flow))
    return 0


def run_inspect(args: argparse.Namespace) -> int:
    """Show a model file of ours or of a foreign format. Raises StreamLSTMError, OSError."""
    path = Path(args.file)
    if not path.exists():  # it has no format either
        raise FileNotFoundError(f"no such file: {path}")
    if model_file.is_model_file(path):
        model = model_file.load(path)
        _say("model", model.name)
        _say("fingerprint", model.fingerprint)
        _show(model)
        proof = model_file.read_proof(path)
        if proof is None:
            _say("proof", "none")
        else:
            _say_proof(proof)
        return 0
    source = open_source(path, flow=args.flow)
    _say("format", source.format)
    try:
        model = model_of(source, name=path.stem)
    except ModelError:
        _list(source)
        raise
    _show(model)
    _say_assumed(source)
    _say_unproven(source)
    return 0


# --- what is printed ------------------------------------------------------------------------------


def _say(what: str, text: object) -> None:
    print(f"{what:12} {_printable(str(text))}")


def _say_assumed(source: Source) -> None:
    for assumption in source.assumed:
        _say("assumed", assumption)


def _say_proof(proof: Proof) -> None:
    """What a comparison showed: of the network, or of its cells alone."""
    if proof.flow_by == "source":
        _say("proof", _told(proof))
    else:
        unproven = f"{_UNPROVEN[proof.flow_by]}: {_TO_PROVE}"
        _say("compared", f"cells only, against {_told(proof)}; {unproven}")


def _say_unproven(source: Source) -> None:
    if source.flow_by != "source":
        _say("flow", f"not proven: {_UNPROVEN[source.flow_by]}: {_TO_PROVE}")


def _printable(text: str) -> str:
    """What stands in a file may hold what would move the terminal's cursor."""
    return text if text.isprintable() else repr(text)


def _told(proof: Proof) -> str:
    steps = counted(len(proof.x), "step")
    return f"{proof.framework}: {steps}, largest difference {proof.largest:.1e}"


def _list(source: Source) -> None:
    """All recurrent layers, with why one can't be imported."""
    found = source.recurrent()
    if not found:
        print(f"no recurrent layer in this {source.format} file")
        return
    width = max(len(_printable(each.where)) for each in found)
    for each in found:
        refusal = "" if each.layer is not None else f"  can't be imported: {each.refusal}"
        print(f"  {_printable(each.where):{width}}  {_printable(each.text + refusal)}")


def _show(model: Model) -> None:
    _say("dtype", model.dtype.name)
    _say("parameters", f"{model.parameters:,}")
    _say("state", f"{counted(_state_bytes(model), 'byte')} per session")
    print("layers")
    for layer in model.layers:
        sizes = f"{layer.input_size:5} -> {layer.output_size:<5}"
        print(f"  {layer.kind:10} {sizes} {', '.join(_options(layer))}".rstrip())
    for title, features in (("inputs", model.inputs), ("outputs", model.outputs)):
        print(title)
        for feature in features:
            print(f"  {_described(feature)}")
    if model.head is not None:
        print("head")
        for what, text in _told_of_head(model.head):
            print(f"  {what:10} {_printable(text)}")


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
    for k in sorted({0, len(head.residuals) - 1} - {-1}):
        r, unit = head.residuals[k], f" {head.target.unit}".rstrip()
        yield (
            f"step {k + 1}",
            f"off by {r.mae:.4g}{unit} (std {r.std:.4g}) on rows not trained on; "
            f"{100 * r.coverage:.0f} % of them within the band",
        )


def _described(feature: Feature) -> str:
    unit = f"[{feature.unit}]" if feature.unit else ""
    return _printable(f"{feature.name:20} {unit:12} mean {feature.mean:.6g}  std {feature.std:.6g}")


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
