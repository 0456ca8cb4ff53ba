from typing import Any

import numpy as np
from numpy.typing import NDArray

def available(name: str) -> tuple[str, int] | None: ...
def pack(gates: NDArray[Any], lanes: int) -> NDArray[np.float32]: ...
def apply(
    kernel_name: str, function: str, x: NDArray[np.float32]
) -> NDArray[np.float32]: ...
