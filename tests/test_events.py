"""Events as a caller gives them: by name where names are known, times where a time is a time."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from collections import namedtuple
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal

import numpy as np
import pandas as pd
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

import streamlstm as sl
from heads import FLOW, headed
from networks import stacked
from streamlstm import Head, readings
from streamlstm.errors import DtypeError, InputError, MissingInputError, ShapeError
from streamlstm.times import as_seconds

NAMES = ("flow", "temp", "speed")
NETWORK = stacked(3, 5)
HEAD = Head(FLOW, time="time", step_s=3600.0)
T = 7


@pytest.fixture
def engine():
    layers = NETWORK.layers
    features = [sl.Feature(name) for name in NAMES]
    with sl.Engine(sl.Model(layers, inputs=features, name="pump")) as opened:
        yield opened


@pytest.fixture(name="X")
def events():
    return np.random.default_rng(3).standard_normal((T, 3)).astype(np.float32)


def table(X, order=NAMES):
    return {name: X[:, NAMES.index(name)] for name in order}


Reading = namedtuple("Reading", ("speed", "flow", "temp"))


def as_records(columns):
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def as_structured(columns):
    out = np.empty(T, [(name, "f4") for name in columns])
    for name in columns:
        out[name] = columns[name]
    return out


KINDS = {
    "mapping": dict,
    "pandas": pd.DataFrame,
    "pandas nullable": lambda c: pd.DataFrame(c).convert_dtypes(),
    "polars": pl.DataFrame,
    "polars structs": lambda c: pl.DataFrame(c).to_struct("pump"),
    "records": as_records,
    "structured": as_structured,
}


@given(order=st.permutations(NAMES), kind=st.sampled_from(sorted(KINDS)))
def test_any_order_of_columns_gives_the_bits_of_the_right_one(order, kind):
    X = np.random.default_rng(3).standard_normal((T, 3)).astype(np.float32)
    model = sl.Model(NETWORK.layers, inputs=[sl.Feature(n) for n in NAMES])
    given_ = KINDS[kind](table(X, order))
    with sl.Engine(model) as engine:
        Y = engine.open("by place").run(X)
        assert engine.open("by name").run(given_).tobytes() == Y.tobytes()
        fleet = engine.group([engine.open(f"s{k}") for k in range(T)])
        other = engine.group([engine.open(f"o{k}") for k in range(T)])
        assert fleet.step(given_).tobytes() == other.step(X).tobytes()


def test_one_event_by_name(engine, X):
    want = [y.tobytes() for y in engine.open("by place").run(X)]
    frame = pd.DataFrame(table(X, ("temp", "speed", "flow")))
    session = engine.open("pandas")
    assert [session.step(row).tobytes() for _, row in frame.iterrows()] == want
    session = engine.open("polars")
    rows = pl.DataFrame(table(X, ("temp", "speed", "flow"))).iter_rows(named=True)
    assert [session.step(row).tobytes() for row in rows] == want
    session = engine.open("named tuples")
    rows = frame.itertuples(index=False)
    assert [session.step(row).tobytes() for row in rows] == want
    assert engine.open("structured").step(as_structured(table(X))[0]).tobytes() == want[0]
    assert engine.open("no names").step(pd.Series(X[0])).tobytes() == want[0]
    for kind in (pd.DataFrame, pl.DataFrame):
        session = engine.open(f"slices of a {kind}")
        rows = kind(table(X, ("temp", "speed", "flow")))
        assert [session.step(rows[k : k + 1]).tobytes() for k in range(T)] == want
        with pytest.raises(ShapeError, match=r"shape \(2, 3\)"):
            session.step(rows[:2])


def test_rows_of_a_database(engine, X):
    base = sqlite3.connect(":memory:")
    base.row_factory = sqlite3.Row
    query = "select ? as temp, ? as speed, ? as flow"
    rows = [base.execute(query, x).fetchone() for x in X[:, [1, 2, 0]].tolist()]
    Y = engine.open("by place").run(X)
    assert engine.open("run").run(rows).tobytes() == Y.tobytes()
    assert engine.open("step").step(rows[0]).tobytes() == Y[0].tobytes()
    base.close()


@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize(
    ("order", "sentence"),
    [
        (("flow", "temp"), "lacks speed"),
        ((*NAMES, "other"), "has unknown other"),
        (("flow", "temp", "other"), "lacks speed and has unknown other"),
    ],
)
def test_missing_and_foreign_names_are_refused(engine, X, kind, order, sentence):
    columns = dict.fromkeys(order, X[:, 0])
    session = engine.open("a")
    group = engine.group([engine.open(f"s{k}") for k in range(T)])
    for ask in (session.run, group.step):
        with pytest.raises(MissingInputError, match=f"{sentence}; the model's inputs are flow"):
            ask(KINDS[kind](columns))
    assert (session.seq, int(group.seqs.max())) == (0, 0)


def test_what_is_no_number_is_refused(engine, X):
    session = engine.open("a")
    columns = table(X)
    for frame in (pd.DataFrame, pl.DataFrame):
        with pytest.raises(DtypeError, match="events must be real numbers"):
            session.run(frame(columns | {"temp": ["warm"] * T}))
        with pytest.raises(InputError, match="must be finite"):
            session.run(frame(columns | {"temp": [None, *X[1:, 1].tolist()]}))
        for strange in (NOON, timedelta(1), Decimal(1), [1.0]):
            with pytest.raises(DtypeError, match=r"real numbers; temp has .*convert"):
                session.run(frame(columns | {"temp": [strange] * T}))
    with pytest.raises(DtypeError, match="temp has dtype datetime64"):
        session.step({"flow": 1.0, "speed": 1.0, "temp": np.datetime64("2024")})
    with pytest.raises(InputError, match="give its collect"):
        session.run(pl.DataFrame(columns).lazy())
    assert session.seq == 0


def test_names_that_are_none_or_not_unique_are_refused(engine, X):
    session = engine.open("a")
    with pytest.raises(MissingInputError, match="has unknown 0, 1, 2; the model"):
        session.run(pd.DataFrame(X))
    twice = pd.DataFrame(X, columns=["flow", "temp", "flow"])
    with pytest.raises(InputError, match="Expected unique column names"):
        session.run(twice)
    with pytest.raises(InputError, match="one name twice in its index"):
        session.step(pd.Series(X[0], index=["flow", "temp", "flow"]))
    many = {f"c{k}": X[:, 0] for k in range(3000)}
    with pytest.raises(MissingInputError, match="c8, c9, and 2,990 more names; the model's"):
        session.run(pd.DataFrame(table(X) | many))
    assert session.seq == 0


def test_a_stream_of_columns_that_narwhals_does_not_read_is_refused(engine, X):
    """By place they would be taken in any order."""

    class Batch:
        def __arrow_c_stream__(self):
            raise NotImplementedError

        def __array__(self, *_, **__):
            return X

    session = engine.open("a")
    with pytest.raises(InputError, match="a Batch is not read here: make a table of pyarrow"):
        session.run(Batch())
    assert session.seq == 0


def test_what_has_no_names_asks_nobody(tmp_path):
    """narwhals takes 30 ms to import, and a stream of plain events never needs it."""
    code = (
        "import sys, streamlstm.events as e, numpy as np\n"
        "f4 = np.dtype('f4')\n"
        "for x in (np.zeros(2), [0.0, 1.0], (0, 1), {'a': 1, 'b': 2}):\n"
        "    e.as_events(x, 'ab', 1, f4)\n"
        "list(e.rows_of(iter([[1, 2]]), 'ab'))\n"
        "assert not {'narwhals', 'pandas', 'polars'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)


def test_a_vector_is_a_run_of_one_input():
    model = stacked(1, 4)
    x = np.random.default_rng(0).standard_normal(T).astype(np.float32)
    with sl.Engine(model) as engine:
        Y = engine.open("column").run(x[:, None])
        for k, vector in enumerate((x, x.tolist(), pd.Series(x), pl.Series(x))):
            assert engine.open(f"{k}").run(vector).tobytes() == Y.tobytes()
        with pytest.raises(ShapeError):
            engine.open("matrix").run(np.zeros((1, 1, 1)))


# --- times ----------------------------------------------------------------------------------------

NOON = datetime(2024, 3, 1, 12, 0, 0, 250_000, tzinfo=UTC)
STAMP = NOON.timestamp()
NAIVE = NOON.replace(tzinfo=None)


@pytest.mark.parametrize(
    "time",
    [
        STAMP,
        NOON,
        NAIVE,
        NOON.astimezone(timezone(timedelta(hours=5, minutes=30))),
        NOON.isoformat(),
        "2024-03-01 12:00:00.25",
        "2024-03-01T13:00:00.25+01:00",
        pd.Timestamp(NOON),
        pd.Timestamp(NAIVE),
        *(np.datetime64(NAIVE).astype(f"datetime64[{unit}]") for unit in ("ms", "us", "ns")),
        *(pd.Timestamp(NAIVE).as_unit(unit) for unit in ("ms", "us", "ns")),
    ],
    ids=repr,
)
def test_a_time_may_be_anything_that_is_one(time):
    assert float(as_seconds(time)) == STAMP
    with sl.Engine(headed(HEAD)) as engine:
        wanted = engine.open("a").step([STAMP, 3.0]).tobytes()
        assert engine.open("list").step([time, 3.0]).tobytes() == wanted
        assert engine.open("mapping").step({"flow": 3.0, "time": time}).tobytes() == wanted
        assert engine.open("sequence").run([[time, 3.0]])[0].tobytes() == wanted
        session = engine.open("series")
        assert session.step(pd.Series({"flow": 3.0, "time": time})).tobytes() == wanted


def test_a_day_is_its_midnight():
    midnight = datetime(2024, 3, 1, tzinfo=UTC).timestamp()
    for day in (date(2024, 3, 1), np.datetime64("2024-03-01"), "2024-03-01"):
        assert float(as_seconds(day)) == midnight


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
@pytest.mark.parametrize("zone", [None, "Europe/Rome"])
def test_times_of_a_data_frame(unit, zone):
    times = pd.date_range("2024-03-31", periods=T, freq="h", unit=unit, tz=zone)
    flow = np.linspace(1.0, 2.0, T)
    X = np.column_stack([[t.timestamp() for t in times], flow])
    frame = pd.DataFrame({"flow": flow, "time": times})
    with sl.Engine(headed(HEAD)) as engine:
        Y = engine.open("by place").run(X).tobytes()
        assert engine.open("pandas").run(frame).tobytes() == Y
        assert engine.open("index").run(frame.set_index("time")).tobytes() == Y
        if unit != "s":  # which polars has not
            assert (
                engine.open("polars")
                .run(
                    pl.from_dict(
                        {
                            "flow": flow,
                            "time": pl.Series(times.to_pydatetime()),
                        }
                    )
                )
                .tobytes()
                == Y
            )
        text = frame.assign(time=[t.isoformat() for t in times])
        assert engine.open("text").run(text).tobytes() == Y
        [series] = readings.from_frame(frame, "flow")
        assert engine.open("readings").run(series.events()).tobytes() == Y


def test_a_pandas_index_of_the_name_of_the_time_is_the_time():
    times = [STAMP + 3600.0 * k for k in range(T)]
    flow = np.linspace(1.0, 2.0, T)
    frame = pd.DataFrame({"flow": flow})
    text = [datetime.fromtimestamp(t, UTC).isoformat() for t in times]
    with sl.Engine(headed(HEAD)) as engine:
        Y = engine.open("by place").run(np.column_stack([times, flow])).tobytes()
        for kind, index in {"text": text, "seconds": times}.items():
            named = frame.set_index(pd.Index(index, name="time"))
            assert engine.open(kind).run(named).tobytes() == Y
            [series] = readings.from_frame(named, "flow")
            assert series.times.tolist() == times
        with pytest.raises(MissingInputError, match="lacks time"):
            engine.open("other").run(frame.set_index(pd.Index(text, name="when")))


def test_what_pandas_and_polars_call_no_value_is_nan():
    frame = pd.DataFrame({"time": pd.to_datetime([STAMP], unit="s"), "flow": [pd.NA]})
    nullable = frame.astype({"flow": "Int64"})
    polars = pl.DataFrame({"time": [STAMP], "flow": [None]})
    given = {
        "frame": frame,
        "nullable": nullable,
        "row": frame.iloc[0],
        "nullable row": nullable.iloc[0],  # pandas makes NaT of it
        "tuple": next(nullable.itertuples(index=False)),
        "list": [STAMP, pd.NA],
        "polars": polars,
        "polars row": polars.row(0, named=True),
    }
    with sl.Engine(headed(HEAD)) as engine:
        wanted = engine.open("NaN").step([STAMP, np.nan]).tobytes()
        for name, x in given.items():
            assert engine.open(name).step(x).tobytes() == wanted, name


@pytest.mark.parametrize(
    ("time", "sentence"),
    [
        (np.timedelta64(1, "h"), "a timedelta64; expected a time"),
        (pd.NaT, "NaT: leave that row out"),
        (np.datetime64("NaT"), "NaT: leave that row out"),
        ("yesterday", "'yesterday'; expected a time like 2014"),
        (True, "True, a bool; expected a time"),
    ],
)
def test_what_is_no_time_is_refused(time, sentence):
    with sl.Engine(headed(HEAD)) as engine:
        session = engine.open("a")
        with pytest.raises(InputError, match=sentence):
            session.step({"time": time, "flow": 1.0})
        assert session.seq == 0


# --- readings -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [pd.DataFrame, pl.DataFrame])
def test_series_of_a_frame_are_those_of_its_file(kind, tmp_path):
    rows = {
        "meter": ["b", "a", "b", "a"],
        "date": [f"2024-03-0{k}" for k in (1, 1, 2, 2)],
        "rain": [0.5, 0.25, None, 0.0],
        "flow": [1.0, 2.0, 3.0, 4.0],
    }
    pd.DataFrame(rows).to_csv(tmp_path / "flow.csv", index=False)
    read = readings.read(str(tmp_path / "flow.csv"), "flow", others=["rain"], series="meter")
    found = readings.from_frame(kind(rows), "flow", others=["rain"], series="meter")
    assert [s.name for s in found] == [s.name for s in read] == ["b", "a"]
    for one, other in zip(found, read, strict=True):
        np.testing.assert_array_equal(one.events(), other.events())
        assert one.time == other.time == "date"
    with pytest.raises(InputError, match="the data frame lacks column level; it has meter, date"):
        readings.from_frame(kind(rows), "level")
    with pytest.raises(DtypeError, match="events must be real numbers; column meter has"):
        readings.from_frame(kind(rows), "meter")
    with pytest.raises(InputError, match="takes a data frame, got list"):
        readings.from_frame([1], "flow")


@pytest.mark.parametrize("kind", [pd.DataFrame, pl.DataFrame])
def test_the_time_of_a_frame_is_found_as_in_its_file(kind):
    flow = {"flow": [1.0, 2.0]}
    whens = [NAIVE, NAIVE + timedelta(hours=1)]
    for first in (whens, [when.isoformat() for when in whens]):
        [series] = readings.from_frame(kind({" when ": first} | flow), "flow")
        assert (series.time, series.times.tolist()) == ("when", [STAMP, STAMP + 3600.0])
    [series] = readings.from_frame(kind({"depth": [0.5, 0.25]} | flow), "flow")
    assert series.times is None
    # What has nothing to do with it may hold anything.
    strange = {"end": [None, NAIVE], "label": ["a", None]}
    [series] = readings.from_frame(kind(flow | strange), "flow")
    assert series.values.tolist() == [[1.0], [2.0]]


@pytest.mark.parametrize(
    ("columns", "sentence"),
    [
        ({"time": [20240101, 20240102]}, "20240101, a date as a number"),
        ({"time": [1_704_067_200_000, 0]}, "divide milliseconds by 1000"),
        ({"time": [0.0, np.nan]}, "a time is 'nan'"),
        ({"time": ["2024-01-01", "soon"]}, "a time is 'soon'; expected a time like"),
        ({"flow": [1.0, np.inf]}, "row 2 of column flow holds inf, expected a number"),
    ],
)
@pytest.mark.parametrize("kind", [pd.DataFrame, pl.DataFrame])
def test_what_a_file_may_not_hold_no_frame_may(kind, columns, sentence):
    with pytest.raises(InputError, match=sentence):
        readings.from_frame(kind({"flow": [1.0, 2.0]} | columns), "flow")
