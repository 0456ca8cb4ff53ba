"""`streamlstm inspect`: what a model file, ours or a foreign one, holds."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from streamlstm import model_file, proof
from streamlstm.commands.arguments import add_command, add_flow
from streamlstm.commands.described import (
    list_layers,
    say_assumed,
    say_compared,
    say_proof,
    say_unproven,
    show,
)
from streamlstm.commands.lines import say
from streamlstm.errors import ModelError
from streamlstm.importers import model_of, open_source


def add(commands: Any) -> None:
    inspect = add_command(
        commands, "inspect", run, "show what a model file, or a foreign one, holds"
    )
    inspect.add_argument("file", metavar="FILE", help="model file, or what `import` takes")
    add_flow(inspect)


def run(args: argparse.Namespace) -> int:
    """Show a model file of ours or of a foreign format. Raises StreamLSTMError, OSError."""
    path = Path(args.file)
    path.stat()  # what is not there has no format either
    if model_file.is_model_file(path):
        model = proof.load(path)
        say("model", model.name)
        say("fingerprint", model.fingerprint)
        show(model)
        proven = model_file.read_proof(path)
        compared = model_file.read_comparison(path)
        if proven is not None:
            say_proof(proven)
        elif compared is not None:
            say_compared(compared)
        else:
            say("proof", "none")
        return 0
    source = open_source(path, flow=args.flow)
    say("format", source.format)
    try:
        model = model_of(source, name=path.stem)
    except ModelError:
        list_layers(source)
        raise
    show(model)
    say_assumed(source)
    say_unproven(source)
    return 0
