"""`streamlstm sessions`: look into a state directory, also beside a running server.

Rows are as of the server's last checkpoint, a few seconds ago; the journal behind them is
the server's to replay. So what is exported is the state of the seq that is shown with it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from contextlib import closing
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np

from streamlstm.commands.arguments import add_command, wrong_usage
from streamlstm.commands.lines import complain, printable
from streamlstm.commands.written import check_writable, made_by, remember
from streamlstm.errors import (
    SessionError,
    SessionUnknownError,
    StoreDamagedError,
    StoreError,
    StreamLSTMError,
)
from streamlstm.state import State
from streamlstm.store import ModelRow, Reader, SessionRow, open_store, read_store
from streamlstm.store.directory import server_of
from streamlstm.store.salvage import accept_loss
from streamlstm.wording import counted


def add(commands: Any) -> None:
    sessions = add_command(
        commands,
        "sessions",
        run,
        "list, inspect and export what a server keeps in --state",
        "Works beside a running server, except for --remove and --accept-loss.",
    )
    sessions.add_argument("directory", metavar="DIR", help="the server's --state")
    sessions.add_argument("session", nargs="?", metavar="NAME", help="this session only")
    sessions.add_argument(
        "--model", metavar="MODEL", help="name, or first characters of a fingerprint"
    )
    sessions.add_argument("--name", metavar="PATTERN", help="list names like this: 'pump-*'")
    sessions.add_argument("--json", action="store_true", help="as JSON; of a list, one a line")
    sessions.add_argument(
        "--force", action="store_true", help="write over an --export that something else made"
    )
    action = sessions.add_mutually_exclusive_group()
    action.add_argument("--export", metavar="FILE", help="write NAME's state: State.from_bytes")
    action.add_argument("--remove", action="store_true", help="remove NAME from the store")
    action.add_argument("--check", action="store_true", help="read all, and verify every checksum")
    action.add_argument(
        "--accept-loss",
        action="store_true",
        help="go on from what is whole in a damaged directory, and say what is lost",
    )


def run(args: argparse.Namespace) -> int:
    """Do what the arguments say; the exit code. Raises StreamLSTMError, OSError."""
    if args.session is None and (args.export or args.remove):
        return wrong_usage("sessions: --export and --remove need a NAME")
    if args.session is not None and (args.name or args.check or args.accept_loss):
        return wrong_usage("sessions: --name, --check and --accept-loss take no NAME")
    directory = Path(args.directory)
    if args.check:
        return _check(directory)
    if args.accept_loss:
        return _accept_loss(directory)
    if args.remove:
        return _remove(directory, args.session, args.model)
    by = made_by(f"sessions {args.session}", args.directory)
    if args.export:
        check_writable(args.export, by, args.force)
    with closing(read_store(directory)) as store:
        if args.session is None:
            _list(store, args)
        else:
            model, row = _found(store, args.session, args.model)
            state = _state(model, row)
            if args.export:
                _write(Path(args.export), state.to_bytes())
                remember(args.export, by)
                print(f"{args.export}: state of {printable(row.name)} at seq {row.seq}")
            else:
                _show(model, row, state, args.json)
        _say_how_old(store, directory)
    return 0


def _list(store: Reader, args: argparse.Namespace) -> None:
    models = {m.id: m for m in store.models if _is_model(m, args.model)}
    if args.model and not models:
        raise _no_model(store, args.model)
    rows = (
        {
            "model": models[s.model].name,
            "name": s.name,
            "seq": s.seq,
            "epoch": s.epoch,
            "quarantined": s.quarantined,
            "bytes": s.bytes,
            "fingerprint": models[s.model].fingerprint,
        }
        for s in store.summaries()
        if s.model in models and (args.name is None or fnmatchcase(s.name, args.name))
    )
    if args.json:
        for row in rows:
            print(json.dumps(row))
    else:
        _print_table(rows)


def _print_table(rows: Iterator[dict[str, Any]]) -> None:
    print(f"{'MODEL':16} {'SEQ':>10} {'EPOCH':>10} {'BYTES':>8}  NAME")
    for row in rows:
        note = "  (quarantined)" if row["quarantined"] else ""
        print(
            f"{printable(row['model']):16} {row['seq']:10} {row['epoch']:10} {row['bytes']:8}  "
            f"{printable(row['name'])}{note}"
        )


def _is_model(model: ModelRow, wanted: str | None) -> bool:
    """wanted: a name, or the first characters of a fingerprint; None is any."""
    return wanted is None or model.name == wanted or model.fingerprint.startswith(wanted)


def _no_model(store: Reader, wanted: str) -> StreamLSTMError:
    known = ", ".join(f"{m.name} ({m.fingerprint[:12]})" for m in store.models) or "none"
    return StoreError(f"no model {wanted}; the directory has {known}")


def _say_how_old(store: Reader, directory: Path) -> None:
    holder = server_of(directory)
    parts = []
    if holder is not None:
        parts.append(f"process {holder} has this directory, rows are as of its last checkpoint")
    if store.records:
        parts.append(f"the journal has {counted(store.records, 'record')} behind the rows")
    if parts:
        complain("; ".join(parts))


def _found(store: Reader, name: str, wanted: str | None) -> tuple[ModelRow, SessionRow]:
    models = [m for m in store.models if _is_model(m, wanted)]
    if wanted and not models:
        raise _no_model(store, wanted)
    found = [(m, row) for m in models if (row := store.find(m.id, name)) is not None]
    if not found:
        of = f" of model {wanted}" if wanted else ""
        behind = " (it may be in the journal still)" if store.records else ""
        raise SessionUnknownError(f"no session {name!r}{of} is stored{behind}; list without a name")
    if len(found) > 1:
        models_text = ", ".join(f"{m.name} {m.fingerprint[:12]}" for m, _ in found)
        raise SessionError(
            f"several models have a session {name!r}: {models_text}; say which with --model, "
            "by name or fingerprint"
        )
    return found[0]


def _state(model: ModelRow, row: SessionRow) -> State:
    if not row.state:
        raise StoreError(
            f"session {row.name!r} was quarantined and its last good state is not known: reset or "
            "restore it through the server, or remove it here with --remove"
        )
    dtype = np.dtype(model.dtype)
    numbers = np.frombuffer(row.state, dtype.newbyteorder("<")).astype(dtype.newbyteorder("="))
    sizes = model.sizes or ((model.state_size,),)
    return State(model.fingerprint, row.seq, sizes, numbers, model.arithmetic)


def _show(model: ModelRow, row: SessionRow, state: State, as_json: bool) -> None:
    layers = [
        {"part": f"{part}[{k}]", "units": size, **_figures(get(k))}
        for k, sizes in enumerate(state.sizes)
        for part, get, size in zip("hc", (state.h, state.c), sizes, strict=False)
    ]
    facts: dict[str, Any] = {
        "session": row.name,
        "model": model.name,
        "fingerprint": model.fingerprint,
        "dtype": np.dtype(model.dtype).name,
        "seq": row.seq,
        "epoch": row.epoch,
        "quarantined": row.quarantined,
        "bytes": len(row.state) + len(row.answers),
    }
    if as_json:
        print(json.dumps({**facts, "state": layers}, indent=2))
        return
    for key, value in facts.items():
        print(f"{key:12} {printable(str(value))}")
    print("state")
    for layer in layers:
        figures = "  ".join(f"{key} {layer[key]:<12.6g}" for key in ("min", "max", "norm"))
        print(f"  {layer['part']:6} {layer['units']:6} units  {figures}".rstrip())


def _figures(numbers: Any) -> dict[str, float]:
    return {
        "min": float(numbers.min()),
        "max": float(numbers.max()),
        "norm": float(np.linalg.norm(numbers.astype(np.float64))),
    }


def _write(path: Path, data: bytes) -> None:
    """Whole or not at all."""
    partial = Path(f"{path}.partial")
    try:
        partial.write_bytes(data)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _remove(directory: Path, name: str, wanted: str | None) -> int:
    with closing(read_store(directory)):
        pass  # only to say what is wrong with a directory, instead of creating one
    with closing(open_store(directory, "sync")) as store:
        if store.records:
            raise StoreError(
                f"the journal of {directory} has {counted(store.records, 'record')} to be "
                f"replayed, which may be of {name!r}; start the server with this directory once "
                "and stop it with SIGTERM, then remove"
            )
        model, row = _found(store, name, wanted)
        store.delete([row.id])
        store.commit()
        of = f"{printable(row.name)} of model {printable(model.name)}"
        print(f"removed {of}, seq {row.seq}")
    return 0


def _check(directory: Path) -> int:
    with closing(read_store(directory)) as store:
        problems = 0
        for problem in store.check():
            print(problem)
            problems += 1
        if problems:
            raise StoreDamagedError(
                f"{counted(problems, 'problem')} in {directory}; bring back a copy of it, or go on "
                f"with what is whole: streamlstm sessions {directory} --accept-loss"
            )
        sessions = sum(store.count(m.id) for m in store.models)
        there = f"{counted(sessions, 'session')} and {counted(store.records, 'journal record')}"
        print(f"{there}, all whole")
        _say_how_old(store, directory)
    return 0


def _accept_loss(directory: Path) -> int:
    done = accept_loss(directory)
    if done is None:
        print(f"nothing in {directory} is damaged; nothing was done")
        return 0
    kept, lost = done
    for sentence in lost:
        print(f"lost: {sentence}")
    print(f"{directory} holds what was whole; the damaged files are in {kept}")
    return 0
