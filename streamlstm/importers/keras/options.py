"""The options of a Keras layer: taken, harmless or refused; one not known here is refused too."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from numpy.typing import NDArray

from streamlstm.importers.keras.files import KerasFile, refuse
from streamlstm.importers.keras.flow import Config, Part
from streamlstm.layers import Function

Array = NDArray[Any]

# Options without a word in a stepwise run from the initial state. Those of a sequence (stateful,
# unroll, return_sequences where it stands last) change what is kept or shown, not the numbers.
_HARMLESS = re.compile(
    r"name|trainable|dtype|batch_input_shape|batch_shape|input_shape|input_dtype|input_dim"
    r"|input_length|output_dim|units|autocast|sparse|ragged|optional|seed|implementation|\w*dropout"
    r"|dropout_[WU]|consume_less|unit_forget_bias|return_sequences|return_state|stateful|unroll"
    r"|zero_output_for_mask|use_cudnn|use_legacy_config|state_size|reverse_state_order|momentum"
    r"|synchronized|renorm\w*|fused|(inner_|forget_bias_)?init|\w+_(initializer|regularizer|constraint)"
)
# Keras 1's names.
_OLD_NAMES = {"inner_activation": "recurrent_activation", "bias": "use_bias"}
_DTYPES = ("float16", "float32", "float64", "mixed_float16", "mixed_bfloat16")
REQUIRED = object()  # as a default: refuse to guess


def renamed(config: Config) -> Config:
    """The same options by the names that they have since Keras 2."""
    return {_OLD_NAMES.get(name, name): value for name, value in config.items()}


def options(part: Part, **defaults: Any) -> list[Any]:
    """The values of these options of a layer, all others being checked.

    Raises UnsupportedModelError for an option or dtype not known, and for a REQUIRED one that
    the file does not tell.
    """
    config = renamed(part.config)
    for name, value in config.items():
        idle = _HARMLESS.fullmatch(name) or value is None or value is False
        if name not in defaults and not idle:
            refuse(f"{part.who} has the option {name} = {str(value)[:60]}, which is not known")
    policy = config.get("dtype") or "float32"
    if isinstance(policy, dict):
        policy = policy["config"].get("name") if isinstance(policy.get("config"), dict) else policy
    if policy not in _DTYPES:
        refuse(
            f"{part.who} has dtype {str(policy)[:60]}; {', '.join(_DTYPES)} can be imported "
            "(save the model unquantised)"
        )
    values = []
    for name, default in defaults.items():
        value = config.get(name, default)
        if value is REQUIRED:
            refuse(f"{part.who} does not tell its {name}; save the model with a newer Keras")
        if isinstance(default, bool) and not isinstance(value, bool):
            refuse(f"{part.who} has {name} = {str(value)[:60]}; expected true or false")
        values.append(value)
    return values


def function_of(part: Part, name: Any, file: KerasFile, known: Iterable[Function]) -> Function:
    """Our function of Keras' name. Raises UnsupportedModelError."""
    if name is None:
        return "linear"
    if name == "hard_sigmoid":
        # keras/src/activations: relu6(x + 3) / 6; up to Keras 2 clip(0.2 x + 0.5, 0, 1).
        if file.major is None:
            refuse(
                f"{part.who} has hard_sigmoid, which Keras 3 changed, and the file does not tell "
                "its keras_version; save the model again with the Keras that trained it"
            )
        return "hard_sigmoid6" if file.major >= 3 else "hard_sigmoid"
    names = {function: function for function in known if function != "hard_sigmoid6"}
    if not isinstance(name, str) or name not in names:
        refuse(f"{part.who} has activation {str(name)[:60]!r}; supported are {', '.join(names)}")
    return names[name]


def matrix(part: Part, weights: dict[str, Array], role: str) -> Array:
    a = weights[role]
    if a.ndim != 2 or not a.size:
        refuse(f"{role} of {part.who} has shape {a.shape}; expected a matrix")
    return a


def check_shape(part: Part, role: str, a: Array, shape: tuple[int, ...]) -> None:
    if a.shape != shape:
        refuse(f"{role} of {part.who} has shape {a.shape}, expected {shape}")


def check_units(part: Part, units: int) -> None:
    told = part.config.get("units", part.config.get("output_dim", units))
    if told != units:
        refuse(f"{part.who} has units = {str(told)[:60]}, but weights for {units}")
