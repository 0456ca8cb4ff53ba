"""The server that the demo talks to, as a process of its own, and what ends the demo early."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Self

from streamlstm.errors import ServiceError

START_S_MAX = 60.0
END_S_MAX = 10.0
POLL_S = 0.02
LOG_BYTES_MAX = 1 << 16


class StoppedError(Exception):
    """A signal asked the demo to end."""

    def __init__(self, signum: int) -> None:
        self.exit_code = 128 + signum
        super().__init__(f"stopped by {signal.Signals(signum).name}")


class StopSignals:
    """Within it, Ctrl-C, SIGTERM and SIGHUP are only noted; `check` raises StoppedError for them.

    So nothing is ever torn down halfway. Main thread only.
    """

    NOTED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def __init__(self) -> None:
        self._signum = 0

    def check(self) -> None:
        if self._signum:
            raise StoppedError(self._signum)

    def __enter__(self) -> Self:
        self._previous = {number: signal.signal(number, self._note) for number in self.NOTED}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, signum: int, _: FrameType | None) -> None:
        self._signum = self._signum or signum


class Server:
    """`streamlstm serve` on a free port of this machine; leaving the context ends it.

    It gets a session of its own, so that Ctrl-C reaches the demo alone, which then ends it.
    """

    def __init__(self, models: Iterable[Path]) -> None:
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  (closed by __exit__)
        command = [sys.executable, "-P", "-m", "streamlstm", "serve", *map(str, models)]
        self._process = subprocess.Popen(
            [*command, "--bind", "tcp://127.0.0.1:0"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=self._log,
            start_new_session=True,
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    def address(self, stop: StopSignals) -> str:
        """Where it listens, once it does. Raises ServiceError with its last words, StoppedError."""
        until_s = time.monotonic() + START_S_MAX
        while time.monotonic() < until_s:
            stop.check()
            ended = self._process.poll() is not None
            lines = self._log_lines()
            for line in lines:
                with suppress(ValueError):  # half a line, or no log line
                    entry = json.loads(line)
                    if entry["event"] == "listening":
                        return str(entry["endpoint"])
            if ended:
                last_words = lines[-1] if lines else "nothing"
                raise ServiceError(f"the demo's server did not start; it said: {last_words}")
            time.sleep(POLL_S)
        raise ServiceError(f"the demo's server was not ready within {START_S_MAX:g} s; try again")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(END_S_MAX)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()

    def _log_lines(self) -> list[str]:
        # pread, because the server writes at the file's position.
        return os.pread(self._log.fileno(), LOG_BYTES_MAX, 0).decode(errors="replace").splitlines()
