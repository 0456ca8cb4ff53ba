from typing import Any

from streamlstm.kernels.table import Row
from streamlstm.layers import Layer

class Network:
    row: Row
    state_size: int
    macs: int
    initial_state: bytes
    def __new__(
        cls, row: Row, layers: list[Layer], x_mean: Any, x_std: Any, y_mean: Any, y_std: Any
    ) -> Network: ...
