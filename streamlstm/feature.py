"""One input or output of a network: its name, unit and scaling."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Feature:
    """One input or output: its name, unit and scaling.

    The network sees ``(value - mean) / std`` of an input; an output is
    ``value * std + mean`` of what the network says. Both in the feature's own unit.
    """

    name: str
    unit: str = ""
    mean: float = 0.0
    std: float = 1.0
