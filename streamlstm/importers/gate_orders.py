"""All foreign gate orders, in one table.

LSTM: i input, f forget, g cell candidate, o output. GRU: r reset, z update, n candidate.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

CANONICAL = {"lstm": "ifgo", "peepholes": "ifo", "gru": "rzn"}

ORDERS = {
    # torch.nn.LSTM, "Variables": weight_ih_l[k] is (W_ii|W_if|W_ig|W_io); torch.nn.GRU:
    # (W_ir|W_iz|W_in). Peepholes, which it lacks, are named one by one.
    "pytorch": {"lstm": "ifgo", "gru": "rzn"},
    # keras/src/layers/rnn/lstm.py: kernel_i, _f, _c, _o; gru.py: z, r, h.
    "keras": {"lstm": "ifgo", "gru": "zrn"},
    # ONNX operators, LSTM: W[iofc], P[iof]; GRU: W[zrh].
    "onnx": {"lstm": "iofg", "peepholes": "iof", "gru": "zrn"},
    # NeuralAmpModelerCore, NAM/lstm.cpp: rows i, f, g, o.
    "nam": {"lstm": "ifgo"},
    # TFLite keeps a tensor for each gate; its schema lists them so.
    "tflite": {"lstm": "ifgo", "peepholes": "ifo"},
}


def canonical(a: NDArray[Any], source: str, kind: str, wanted: str = "") -> NDArray[Any]:
    """The gate blocks along a's first axis in our order.

    kind: "lstm", "peepholes" or "gru". wanted: the gates to take; by default all of the kind.
    """
    order = ORDERS[source][kind]
    blocks = dict(zip(order, np.split(a, len(order)), strict=True))
    return np.concatenate([blocks[gate] for gate in wanted or CANONICAL[kind]])


def gru_biases(b_x: NDArray[Any], b_h: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """b [3H] and b_n [H] of a GRU that resets after the product, of its two biases [3H] r, z, n.

    For r and z they are only added; n's hidden one is inside the reset's product.
    """
    outside = len(b_x) // 3 * 2
    with np.errstate(over="ignore", invalid="ignore"):  # Model refuses what is not finite
        added = b_x[:outside] + b_h[:outside]
    return np.concatenate([added, b_x[outside:]]), b_h[outside:]
