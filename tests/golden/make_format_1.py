"""Makes format_1.safetensors: a model file of format 1, which every later release must load.

Run once, by the release that introduced the format; never again. It holds all that the
format can: learned h0 and c0, every activation, scaling, units.

    python tests/golden/make_format_1.py
"""

from pathlib import Path

import numpy as np

import streamlstm as sl


def main() -> None:
    rng = np.random.default_rng(1)

    def random(*shape: int) -> np.ndarray:
        return rng.uniform(-0.5, 0.5, shape).astype(np.float32)

    layers = [
        sl.Dense(random(4, 2), random(4), "relu"),
        sl.LSTM(random(12, 4), random(12, 3), random(12), h0=random(3), c0=random(3)),
        sl.Dense(random(3, 3), random(3), "sigmoid"),
        sl.LSTM(random(8, 3), random(8, 2), random(8)),
        sl.Dense(random(2, 2), random(2), "tanh"),
        sl.Dense(random(1, 2), random(1), "linear"),
    ]
    model = sl.Model(
        layers,
        inputs=[sl.Feature("flow", "m³/h", 12.5, 3.25), sl.Feature("temperature", "°C", -1.5, 8.0)],
        outputs=[sl.Feature("level", "m", 2.0, 0.5)],
        name="format 1",
    )
    model.save(Path(__file__).with_name("format_1.safetensors"))
    print(model.fingerprint)


if __name__ == "__main__":
    main()
