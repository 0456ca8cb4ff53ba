"""Streaming LSTM inference: stateful sessions, stepped one event at a time.

Names are imported when they are first used: `import streamlstm` brings in neither zmq
nor torch, and a client brings in no engine. All errors are in `errors`, the common ones here too.
"""

from __future__ import annotations

import importlib
import os.path
import sys
from importlib.machinery import PathFinder
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from streamlstm import errors
    from streamlstm.core.sessions import Group
    from streamlstm.engine import Engine, Session
    from streamlstm.errors import (
        CapacityError,
        DeadlineError,
        EngineError,
        InputError,
        ModelError,
        ServerBusyError,
        ServerTimeoutError,
        ServiceError,
        SessionError,
        SessionExistsError,
        SessionUnknownError,
        StoreError,
        StreamLSTMError,
    )
    from streamlstm.feature import Feature
    from streamlstm.head import Head
    from streamlstm.importers import from_torch, import_model
    from streamlstm.importers.verify import Proof, verify
    from streamlstm.kernels import show_config
    from streamlstm.layers import GRU, LSTM, Activation, Dense, Embedding
    from streamlstm.model import Model
    from streamlstm.proof import load
    from streamlstm.proof import save as save
    from streamlstm.service.client.aio import AsyncClient
    from streamlstm.service.client.client import Client
    from streamlstm.state import State

__version__ = "0.1.0"

_HOME = {
    "Activation": "layers",
    "AsyncClient": "service.client.aio",
    "CapacityError": "errors",
    "Client": "service.client.client",
    "DeadlineError": "errors",
    "Dense": "layers",
    "Embedding": "layers",
    "Engine": "engine",
    "EngineError": "errors",
    "Feature": "feature",
    "GRU": "layers",
    "Group": "core.sessions",
    "Head": "head",
    "InputError": "errors",
    "LSTM": "layers",
    "Model": "model",
    "ModelError": "errors",
    "Proof": "importers.verify",
    "ServerBusyError": "errors",
    "ServerTimeoutError": "errors",
    "ServiceError": "errors",
    "Session": "engine",
    "SessionError": "errors",
    "SessionExistsError": "errors",
    "SessionUnknownError": "errors",
    "State": "state",
    "StoreError": "errors",
    "StreamLSTMError": "errors",
    "from_torch": "importers",
    "import_model": "importers",
    "load": "proof",
    "save": "proof",  # Model.save's
    "show_config": "kernels",
    "verify": "importers.verify",
}

__all__ = [
    "GRU",
    "LSTM",
    "Activation",
    "AsyncClient",
    "CapacityError",
    "Client",
    "DeadlineError",
    "Dense",
    "Embedding",
    "Engine",
    "EngineError",
    "Feature",
    "Group",
    "Head",
    "InputError",
    "Model",
    "ModelError",
    "Proof",
    "ServerBusyError",
    "ServerTimeoutError",
    "ServiceError",
    "Session",
    "SessionError",
    "SessionExistsError",
    "SessionUnknownError",
    "State",
    "StoreError",
    "StreamLSTMError",
    "errors",
    "from_torch",
    "import_model",
    "load",
    "show_config",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name == "errors":
        return importlib.import_module("streamlstm.errors")
    if name not in _HOME:
        raise AttributeError(f"module 'streamlstm' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"streamlstm.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]


def _is_built(folder: str) -> bool:
    core = os.path.join(folder, "core")
    return PathFinder.find_spec("streamlstm.core.engine", [core]) is not None


def _stand_aside() -> None:
    """A source folder has no compiled modules, and `python` started beside it finds it first:
    the installed package then takes its place in this very module."""
    here = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
    others = [folder for folder in sys.path if os.path.realpath(folder) != here]
    spec = PathFinder.find_spec("streamlstm", others)
    if spec is None or spec.loader is None or not _is_built(os.path.dirname(str(spec.origin))):
        return  # the first compiled module that is missed says what to do
    found = {"__file__": spec.origin, "__path__": spec.submodule_search_locations, "__spec__": spec}
    globals().update(found)
    spec.loader.exec_module(sys.modules[__name__])


if not _is_built(__path__[0]):
    _stand_aside()
