import numpy as np
from numpy.typing import NDArray

class Row:
    name: str
    arithmetic: str
    weights: str
    numbers: str
    lanes: int
    same_bits: bool
    supported: bool

ROWS: tuple[Row, ...]

def apply(row: Row, function: str, x: NDArray[np.float32]) -> NDArray[np.float32]: ...
