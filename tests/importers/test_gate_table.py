"""docs/importing.md has the gate orders of the one table."""

from __future__ import annotations

from pathlib import Path

from streamlstm.importers.gate_orders import CANONICAL, ORDERS

DOCS = Path(__file__).parent.parent.parent / "docs" / "importing.md"
NAMES = {
    "pytorch": "PyTorch",
    "keras": "Keras, RTNeural",
    "onnx": "ONNX",
    "nam": "NAM",
    "tflite": "TensorFlow Lite",
}


def test_the_documented_orders_are_those_in_use():
    lines = DOCS.read_text().splitlines()
    start = lines.index("| format | LSTM | peepholes | GRU |") + 2
    told: dict[str, dict[str, str]] = {}
    for line in lines[start : start + len(NAMES)]:
        name, *cells = (cell.strip() for cell in line.strip("|").split("|"))
        orders = (cell.split("(")[0].replace(" ", "") for cell in cells)
        known = zip(CANONICAL, orders, strict=True)
        told[name] = {kind: order for kind, order in known if order not in ("-", "named")}
    assert told == {NAMES[source]: orders for source, orders in ORDERS.items()}
    assert not lines[start + len(NAMES)]
