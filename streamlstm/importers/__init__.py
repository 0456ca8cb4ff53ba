"""Networks from elsewhere. import_model is the one door for files; each format is a module.

Code in a file is never run: a pickle is read as tensors only, or refused.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from streamlstm.errors import UnsupportedModelError
from streamlstm.importers.pytorch import from_torch, read_state_dict
from streamlstm.model import Model

__all__ = ["from_torch", "import_model"]

_READERS = {".pt": read_state_dict, ".pth": read_state_dict, ".safetensors": read_state_dict}


def import_model(path: str | os.PathLike[str], **description: Any) -> Model:
    """A Model from a foreign file: today a PyTorch state dict (.pt, .pth, .safetensors).

    description: inputs, outputs, activations, name, as in from_torch (name defaults to the
    file's). Raises OSError, and UnsupportedModelError naming what we do not have.
    """
    path = Path(path)
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise UnsupportedModelError(
            f"{path} has an unknown ending; files ending in {', '.join(_READERS)} can be imported"
        )
    return from_torch(reader(path), **({"name": path.stem} | description))
