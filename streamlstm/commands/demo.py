"""`streamlstm demo`: the main job on real series (streamlstm/demo)."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from streamlstm.commands.arguments import add_command, positive_int, wrong_usage
from streamlstm.commands.written import PLOTS, check_writable, remember


def add(commands: Any) -> None:
    text = "stream real sensor series through a broker, with a live table"
    demo = add_command(commands, "demo", run, text)
    demo.add_argument("--plot", metavar="PATH", help="where to write the plot: .svg, .png or .pdf")
    demo.add_argument(
        "--force", action="store_true", help="write over a file that something else made"
    )
    demo.add_argument("--rows", type=positive_int, metavar="N", help="rows of each series at most")


def run(args: argparse.Namespace) -> int:
    if args.plot is not None and Path(args.plot).suffix not in PLOTS:
        return wrong_usage(f"demo: --plot draws {', '.join(PLOTS)}; got {args.plot}")
    from streamlstm.demo import main as demo  # noqa: PLC0415

    if args.plot is None:  # the file has the demo's own name
        return demo.run(args)
    check_writable(args.plot, "demo", args.force)
    code = demo.run(args)
    if code == 0:
        remember(args.plot, "demo")
    return code
