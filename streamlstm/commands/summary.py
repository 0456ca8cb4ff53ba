"""What came of all rows: the lines at the end of `detect`."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from streamlstm.commands.lines import Teller
from streamlstm.detection import Judged, Row, Watched
from streamlstm.engine import Engine
from streamlstm.errors import InputError
from streamlstm.wording import counted


@dataclass
class Counted:
    """All series, and what happened to their rows. trained: of each, the last line trained on."""

    trained: dict[str, int]
    keep: bool
    watched: dict[str, Watched] = field(default_factory=dict)
    rows: Counter[str] = field(default_factory=Counter)
    judged: Judged = field(default_factory=Judged)
    refusal: str = ""

    def count(self, row: Row, last: float) -> None:
        """last: the value before the row."""
        seen = row.line <= self.trained.get(row.series, 0)
        self.rows["all"] += 1
        self.rows["trained"] += seen
        self.rows["warming"] += row.report.warming
        self.rows["alerts"] += row.report.alert
        self.rows["alerts in training"] += row.report.alert and seen
        if row.report.status == "stepped" and not seen and not math.isnan(row.expected[0]):
            self.judged.judge(row, last)
        if self.keep:
            self.watched[row.series].rows.append(row)

    def refuse(self, row: Row, why: InputError) -> None:
        self.leave_out(row.line, why)
        self.count(row, math.nan)

    def leave_out(self, line: int, why: InputError) -> None:
        # A model's sentence begins with the number of a reading, which is always 0 here.
        self.refusal = self.refusal or f"line {line}: {str(why).replace('reading 0', 'the row')}"
        self.rows["refused"] += 1

    def tell(self, tell: Teller, engine: Engine) -> None:
        rows, series = self.rows, len(self.watched)
        of = "" if series == 1 else f" of {series:,} series"
        trained = f"; the model was trained on {rows['trained']:,} of them" if self.trained else ""
        alerts = f"; {rows['alerts in training']:,} in rows trained on" if self.trained else ""
        where = ", in rows not trained on" if self.trained else ""
        before = f"; {rows['seen before']:,} more were seen before" if rows["seen before"] else ""
        tell.fact("rows", f"{rows['all']:,}{of}{trained}{before}")
        if self.judged.rows:
            tell.fact("forecasts", f"{self.judged}{where}")
        tell.fact("alerts", f"{rows['alerts']:,}{alerts}")
        tell.fact("warming up", f"{counted(rows['warming'], 'row')}, which can't alert")
        counters = engine.counters() | {"refused": rows["refused"]}
        tell.fact("counters", ", ".join(f"{name} {n:,}" for name, n in counters.items()))
        for note in self._notes(counters, engine):
            tell.fact("note", note)

    def _notes(self, counters: dict[str, int], engine: Engine) -> Iterator[str]:
        """What speaks against the model or the file."""
        head = engine.model.head
        assert head is not None
        dropped = sum(counters[name] for name in ("repeated", "late", "early"))
        if head.late == "drop" and dropped > 0.2 * self.rows["all"]:
            every = f", one step every {head.step_s:g} s" if head.spacing == "grid" else ""
            yield (
                f"{dropped:,} rows were dropped: are they in the order of time, of one sensor "
                f"(else name its column: --series), and as far apart as the model's{every}?"
            )
        if self.judged.rows and self.judged.off > 1.5 * self.judged.last_off:
            yield "the forecasts are worse than the last value: is the model of such a sensor?"
