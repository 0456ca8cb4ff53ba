"""Streaming LSTM inference: stateful sessions, stepped one event at a time.

Names are imported when they are first used: `import streamlstm` brings in neither zmq
nor torch, and a client brings in no engine.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from streamlstm._engine import Group
    from streamlstm.engine import Engine, Session, State
    from streamlstm.errors import StreamLSTMError
    from streamlstm.feature import Feature
    from streamlstm.head import Head
    from streamlstm.importers import from_torch, import_model
    from streamlstm.importers.verify import Proof, verify
    from streamlstm.kernels import show_config
    from streamlstm.layers import GRU, LSTM, Activation, Dense, Embedding
    from streamlstm.model import Model
    from streamlstm.model_file import load
    from streamlstm.serving.client import AsyncClient, Client

__version__ = "0.1.0"

_HOME = {
    "Activation": "layers",
    "AsyncClient": "serving.client",
    "Client": "serving.client",
    "Dense": "layers",
    "Embedding": "layers",
    "Engine": "engine",
    "Feature": "feature",
    "GRU": "layers",
    "Group": "_engine",
    "Head": "head",
    "LSTM": "layers",
    "Model": "model",
    "Proof": "importers.verify",
    "Session": "engine",
    "State": "engine",
    "StreamLSTMError": "errors",
    "from_torch": "importers",
    "import_model": "importers",
    "load": "model_file",
    "show_config": "kernels",
    "verify": "importers.verify",
}

__all__ = [
    "GRU",
    "LSTM",
    "Activation",
    "AsyncClient",
    "Client",
    "Dense",
    "Embedding",
    "Engine",
    "Feature",
    "Group",
    "Head",
    "Model",
    "Proof",
    "Session",
    "State",
    "StreamLSTMError",
    "from_torch",
    "import_model",
    "load",
    "show_config",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'streamlstm' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"streamlstm.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
