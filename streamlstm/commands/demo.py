"""`streamlstm demo`: the main job on real series (streamlstm/demo)."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from streamlstm.commands.arguments import add_command, positive_int, wrong_usage
from streamlstm.commands.written import PLOTS


def add(commands: Any) -> None:
    text = "stream real sensor series through a broker, with a live table"
    demo = add_command(commands, "demo", run, text)
    demo.add_argument("--plot", metavar="PATH", help="where to write the plot: .svg, .png or .pdf")
    demo.add_argument("--rows", type=positive_int, metavar="N", help="rows of each series at most")


def run(args: argparse.Namespace) -> int:
    if args.plot is not None and Path(args.plot).suffix not in PLOTS:
        return wrong_usage(f"demo: --plot draws {', '.join(PLOTS)}; got {args.plot}")
    from streamlstm.demo import main as demo  # noqa: PLC0415

    return demo.run(args)
