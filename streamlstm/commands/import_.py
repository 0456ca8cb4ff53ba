"""`streamlstm import`: a model file of a foreign network, and its proof."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from streamlstm import csv_events
from streamlstm.commands.arguments import (
    add_command,
    add_flow,
    names,
    natural,
    positive_int,
    wrong_usage,
)
from streamlstm.commands.described import (
    list_layers,
    say_assumed,
    say_proof,
    say_unproven,
    show,
    told,
)
from streamlstm.commands.lines import say
from streamlstm.commands.written import check_writable, made_by, remember
from streamlstm.errors import ModelError, UnsupportedModelError
from streamlstm.importers import model_of, open_source
from streamlstm.importers.source import Source
from streamlstm.importers.verify import Proof, verify
from streamlstm.model import Model

STEPS = 500


# As a share of the largest answer, or of 1 where that is smaller. Float32 rounds by 6e-8; a sum
# of thousands of weights and hundreds of steps make that 1e-6 to 1e-5, a swapped gate or bias
# tenths. And a tenth of what load accepts, so that the file loads on other processors, too.
DIFFERENCE = 1e-4


# As a share of the largest answer, where the framework says that it rounds to 8 bits on its way,
# which we don't: onnxruntime's DynamicQuantizeLSTM was off by 0.005 to 0.015, with swapped gates
# by 0.2 and more.
QUANTIZED_DIFFERENCE = 0.05


def add(commands: Any) -> None:
    command = add_command(
        commands,
        "import",
        run,
        "make a model file of a foreign network, and prove it",
        "The network runs in its own framework, where that is installed, and here on the same "
        "events, step by step; the largest difference is shown, and the framework's answers go "
        "into the file as its test vector. docs/importing.md has the formats.",
    )
    command.add_argument("file", metavar="FILE", help="PyTorch, Keras, ONNX, TFLite, NAM, RTNeural")
    command.add_argument("-o", dest="out", metavar="MODEL", help="the model file to write")
    command.add_argument(
        "--force", action="store_true", help="write over a MODEL that something else made"
    )
    command.add_argument("--list", action="store_true", help="list FILE's recurrent layers only")
    command.add_argument("--select", metavar="PATH", help="take this recurrent layer alone")
    add_flow(command)
    command.add_argument("--name", metavar="NAME", help="the model's name (default: FILE's)")
    command.add_argument("--inputs", type=names, metavar="A,B", help="names of the inputs")
    command.add_argument("--outputs", type=names, metavar="A,B", help="names of the outputs")
    command.add_argument(
        "--data",
        metavar="CSV",
        help="compare on these events (rows as in stream, numbers as the network takes them), "
        "not on random ones",
    )
    command.add_argument(
        "--steps",
        type=positive_int,
        metavar="N",
        help="events to compare on; of --data at most (default: 500)",
    )
    command.add_argument("--seed", type=natural, metavar="N", help="of random events (default: 0)")


def run(args: argparse.Namespace) -> int:
    """Raises StreamLSTMError, OSError."""
    if args.list and any(
        getattr(args, option) is not None
        for option in ["out", "select", "name", "inputs", "outputs", "data", "steps", "seed"]
    ):
        return wrong_usage("import: --list goes with --flow only")
    if args.out is None and not args.list:
        return wrong_usage("import: say where to write the model with -o MODEL, or --list")
    if args.data is not None and args.seed is not None:
        return wrong_usage("import: --seed is of random events; leave it out with --data")
    if args.out is not None and Path(args.out).resolve() == Path(args.file).resolve():
        return wrong_usage("import: -o is FILE itself; write the model elsewhere")
    if args.list:
        return _run_list(args)
    return _run_import(args)


def _run_import(args: argparse.Namespace) -> int:
    """Write a model file of a foreign one. Raises StreamLSTMError, OSError."""
    by = made_by("import", args.file)
    check_writable(args.out, by, args.force)  # the proof may take a while
    source = open_source(args.file, flow=args.flow)
    model = model_of(
        source,
        args.select,
        inputs=args.inputs,
        outputs=args.outputs,
        name=args.name or Path(args.file).stem,
    )
    say("format", source.format if args.select is None else f"{source.format}, {args.select}")
    show(model)
    say_assumed(source)
    proof = _proven(model, source, args)
    model.save(args.out, proof=proof)
    remember(args.out, by)
    say("written", args.out)
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
        say("proof", f"not compared: {e.command_line}")
        if args.select is None:
            say_unproven(source)
        return None
    largest_answer = float(np.max(np.abs(proof.y)))
    allowed = (
        QUANTIZED_DIFFERENCE * largest_answer
        if source.quantizes
        else DIFFERENCE * max(1.0, largest_answer)
    )
    if not (np.isfinite(proof.largest) and proof.largest <= allowed):
        raise ModelError(
            f"{args.out} was not written: the largest difference to {told(proof)}, beyond "
            f"{allowed:.1g}; where a few --steps differ less, the network magnifies rounding: "
            "give real events with --data, or fewer --steps"
        )
    say_proof(proof)
    return None if source.quantizes else proof  # load would find it off


def _run_list(args: argparse.Namespace) -> int:
    """List a foreign file's recurrent layers. Raises UnsupportedModelError, OSError."""
    list_layers(open_source(args.file, flow=args.flow))
    return 0
