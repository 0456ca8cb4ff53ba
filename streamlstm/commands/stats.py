"""`streamlstm stats`: what a server says of itself."""

from __future__ import annotations

import argparse
import json
from typing import Any

from streamlstm.commands.arguments import BIND, add_command, positive_float
from streamlstm.errors import ServiceError


def add(commands: Any) -> None:
    stats = add_command(
        commands, "stats", run, "show a server's counters; fails if it is not healthy"
    )
    stats.add_argument("--connect", default=BIND, metavar="ADDRESS", help="(default: %(default)s)")
    stats.add_argument("--json", action="store_true", help="as JSON")
    stats.add_argument(
        "--timeout", type=positive_float, default=5.0, metavar="SECONDS", help="(default: 5)"
    )


def run(args: argparse.Namespace) -> int:
    from streamlstm.serving.client import Client  # noqa: PLC0415

    with Client(args.connect, patience_s=args.timeout) as client:
        stats = client.stats()
    if args.json:
        print(json.dumps(stats, indent=2))
    else:
        for key, value in stats.items():
            if key != "models":
                text = ", ".join(f"{k} {v}" for k, v in value.items()) if key == "errors" else value
                print(f"{key:14} {text if text != '' else '-'}")
        for name, model in stats["models"].items():
            print(f"model {name}")
            for key, value in model.items():
                print(f"  {key:14} {value}")
    if stats["state"] != "running":
        raise ServiceError(f"the server at {args.connect} is {stats['state']}")
    return 0
