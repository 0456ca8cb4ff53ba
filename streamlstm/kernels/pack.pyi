from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from streamlstm.kernels.table import Row

def aligned(shape: Any, dtype: DTypeLike = np.float32) -> NDArray[Any]: ...
def packed(row: Row, w: NDArray[Any]) -> NDArray[np.uint8]: ...
