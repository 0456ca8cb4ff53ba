"""Train the demo's models: `python -m streamlstm.demo.train` (needs the [train] extra).

Writes one model file per sensor beside its series and prints how well it forecasts the rows it
has not seen: what `streamlstm train` does, with the demo's split. Two minutes on one core.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from streamlstm import readings, training
from streamlstm.demo.feeds import DATA, HORIZONS_H, SENSORS, TRAFFIC, WATER_FLOW, read

# Four weeks of training rows are too few to learn a week.
RECIPES: dict[str, dict[str, Any]] = {
    WATER_FLOW.name: {"hidden": 32, "calendar": ["day"]},
    TRAFFIC.name: {"hidden": 64, "calendar": ["day", "week"]},
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m streamlstm.demo.train", description=__doc__)
    parser.add_argument("--out", type=Path, default=DATA, help="folder of the model files")
    out = parser.parse_args().out
    for sensor in SENSORS:
        series = read(sensor)
        lines = 2 + np.arange(len(series.values))
        rows = readings.Series(
            sensor.quantity, 3600.0 * series.hours, series.values[:, None], lines, "time"
        )
        model = training.fit(
            [rows],
            target=sensor.quantity,
            units=sensor.unit,
            horizon=HORIZONS_H[-1],
            name=sensor.name,
            unseen=1 - series.row_of(sensor.unseen_from) / len(series.values),
            **RECIPES[sensor.name],
        )
        path = out / sensor.model_path.name
        model.save(path)
        print(f"{path}: {model.parameters} numbers; mean absolute error on rows not seen:")
        assert model.head is not None
        for hours in HORIZONS_H:
            print(f"  {hours:2} h ahead: {model.head.residuals[hours - 1].mae:.3g} {sensor.unit}")


if __name__ == "__main__":
    main()
