from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from streamlstm.head import Head

class CompiledHead:
    state_size: int
    largest: NDArray[np.float64]
    def __new__(cls, head: Head) -> CompiledHead: ...

def unroll(
    head: Head, readings: ArrayLike
) -> tuple[NDArray[Any], NDArray[np.int64], NDArray[np.int64]]: ...
