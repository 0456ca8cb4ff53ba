from typing import Any

from numpy.typing import DTypeLike

from streamlstm.layers import Layer

class Network:
    itemsize: int
    inputs: int
    outputs: int
    state_size: int
    macs: int
    initial_state: bytes
    kernel_name: str
    arithmetic: str
    def __new__(
        cls,
        dtype: DTypeLike,
        layers: list[Layer],
        x_mean: Any,
        x_std: Any,
        y_mean: Any,
        y_std: Any,
        kernel: str,
    ) -> Network: ...
