"""All foreign gate orders, in one table.

Ours is i, f, g, o: input, forget, cell candidate, output (PyTorch's names).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

CANONICAL = "ifgo"

# Source: torch.nn.LSTM, "Variables": weight_ih_l[k] is (W_ii|W_if|W_ig|W_io).
ORDERS = {"pytorch": "ifgo"}


def canonical(a: NDArray[Any], source: str) -> NDArray[Any]:
    """The gate blocks along a's first axis [4H, ...] in our order."""
    order = ORDERS[source]
    blocks = dict(zip(order, np.split(a, len(order)), strict=True))
    return np.concatenate([blocks[gate] for gate in CANONICAL])
