"""The logger "streamlstm" of the standard logging: silent until the program that uses it listens.

    logging.basicConfig(level=logging.INFO)

debug: which kernel an engine runs; a request that is sent again. info: a session that came back
after a restart; a server that stops. warning: answers that were lost; a session that was left out.
The server process writes JSON lines of its own (`streamlstm serve`).
"""

from __future__ import annotations

import logging
from typing import Final

log: Final = logging.getLogger("streamlstm")
log.addHandler(logging.NullHandler())
