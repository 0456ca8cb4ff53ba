"""Readings from CSV files as people have them: names, times, gaps, marks between cells."""

from __future__ import annotations

import math

import numpy as np
import pytest

import streamlstm as sl
from streamlstm import cli, csv_events, readings, times
from streamlstm.csv_events import Columns
from streamlstm.errors import InputError
from streamlstm.feature import Feature
from streamlstm.head import Head


@pytest.fixture
def csv(tmp_path, monkeypatch):
    """Writes rows.csv, in the current folder, and gives its name."""
    monkeypatch.chdir(tmp_path)

    def write(text: str | bytes) -> str:
        data = text if isinstance(text, bytes) else text.encode()
        (tmp_path / "rows.csv").write_bytes(data)
        return "rows.csv"

    return write


# --- times ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1970-01-02", 86_400.0),
        ("1970-01-01 00:01:00", 60.0),
        ("1970-01-01T00:01", 60.0),
        (" 1970-01-01T01:01+01:00 ", 60.0),
        ("1970-01-01T00:01:00.25Z", 60.25),
        ("1392388200", 1392388200.0),
        ("-0.5", -0.5),
        ("19700102", 86_400.0),  # a date
        ("19709902", 19_709_902.0),
        ("21000101", 21_000_101.0),
        ("2014", 2014.0),
    ],
)
def test_seconds(text, seconds):
    assert times.seconds(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "yesterday", "14.02.2014", "02/14/2014 14:30", "nan", "inf", "1_000", "\uff11"]
)
def test_what_is_no_time(text):
    with pytest.raises(ValueError, match=r"^expected a time like 2014-02-14 14:30:00"):
        times.seconds(text)


def test_milliseconds_are_not_taken_for_seconds():
    with pytest.raises(
        ValueError, match=r"^expected seconds since 1970; divide milliseconds by 1000$"
    ):
        times.seconds("1392388200000")


# --- columns --------------------------------------------------------------------------------------


def test_columns_by_name_in_the_heads_order(csv):
    path = csv("note,temp,Timestamp,flow\na,20,1970-01-01 00:05:00,1.5\n,,1970-01-01 00:10:00,NA\n")
    [series] = readings.read(path, "flow", others=["temp"])
    assert (series.name, series.time, len(series)) == ("flow", "Timestamp", 2)
    np.testing.assert_array_equal(series.lines, [2, 3])
    want = [[300, 1.5, 20], [600, math.nan, math.nan]]
    np.testing.assert_array_equal(series.events(), want)
    np.testing.assert_array_equal(series.first(1).events(), want[:1])


@pytest.mark.parametrize(
    ("header", "first", "time"),
    [
        ("time,flow", "7", "time"),
        ("DateTime,flow", "7", "DateTime"),
        ("date,time,flow", "2014-02-14,7", "time"),  # timestamp, time, datetime, date
        ("when,flow", "2014-02-14", "when"),
        ("n,flow", "7", None),
        ("n,when,flow", "7,2014-02-14", None),  # only a first column tells by its cells
    ],
)
def test_finding_the_time(csv, header, first, time):
    [series] = readings.read(csv(f"{header}\n{first},1\n"), "flow")
    assert series.time == time
    assert (series.times is None) == (time is None)
    assert series.events().shape == (1, 1 + (time is not None))


def test_a_time_that_is_named(csv):
    path = csv("time,at,flow\nx,60,1\n")
    [series] = readings.read(path, "flow", time="at")
    assert series.time == "at"
    np.testing.assert_array_equal(series.events(), [[60, 1]])


def test_many_series_in_the_order_they_begin(csv):
    path = csv("time,flow,pump\n1,10,b\n1,20,a\n2,11,b\n\n2,21, a \n")
    b, a = readings.read(path, "flow", series="pump")
    assert (b.name, a.name) == ("b", "a")
    np.testing.assert_array_equal(b.events(), [[1, 10], [2, 11]])
    np.testing.assert_array_equal(a.events(), [[1, 20], [2, 21]])
    np.testing.assert_array_equal(a.lines, [3, 6])


@pytest.mark.parametrize(
    "text",
    [
        b"\xef\xbb\xbftime,flow\n60,1.5\n120,2\n",
        b"time;flow;note\n60;1.5;a,b,c\n120;2\n",
        b"time\tflow\n60\t1.5\n120\t2\n",
        b'"time","flow"\r\n"60","1.5"\r\n"120","2"\r\n',
        b'"flow, l/s; left","time","flow"\n9,60,1.5\n9,120,2\n',
        b"\n\ntime;flow\n60;1.5\n\n120;2\n",
        b" time , flow \n 60 , 1.5 \n120,2",
    ],
)
def test_as_programs_write_it(csv, text):
    [series] = readings.read(csv(text), "flow")
    np.testing.assert_array_equal(series.events(), [[60, 1.5], [120, 2]])


# --- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("time,temp\n1,2\n", "rows.csv: the header lacks column flow; it has time, temp"),
        ("", "rows.csv: there are no rows below a header"),
        ("time,flow\n", "rows.csv: there are no rows below a header"),
        ("flow,time,flow\n1,2,3\n", "rows.csv: 2 columns are called flow; rename them"),
        ("flow\n1\nabc\n", "rows.csv, line 3: column flow holds 'abc', expected a number"),
        (
            ",".join(["n" * 50, *"abcdefghijk"]) + "\n1\n",
            f"rows.csv: the header lacks column flow; it has {'n' * 40}..., a, b, c, d, e, f, g, h,"
            " i and 2 more",
        ),
        (
            "time,flow\n1,2\n".encode("utf-16"),
            "rows.csv: the header lacks column flow, and it is not UTF-8; "
            "save the file as CSV in UTF-8",
        ),
        (
            "time,flow\n2020-01-01,1,\n2020-01-02,10,013\n",
            "rows.csv, line 3: the row has 1 cell more than the header; "
            "write decimal points, and quote text that has commas",
        ),
        ("flow\n1_000\n", "rows.csv, line 2: column flow holds '1_000', expected a number"),
        ("flow\n\uff11\n", "rows.csv, line 2: column flow holds '\uff11', expected a number"),
        ("flow\n1\ninf\n", "rows.csv, line 3: column flow holds 'inf', expected a number"),
        (
            "time;flow\n1;2,5\n",
            "rows.csv, line 2: column flow holds '2,5', expected a number with a decimal point",
        ),
        (
            "time,flow\n1,1\n\n,2\n",
            "rows.csv, line 4: column time holds '', expected a time like 2014-02-14 14:30:00",
        ),
        (
            "date,flow\n14.02.2014,1\n",
            "rows.csv, line 2: column date holds '14.02.2014', "
            "expected a time like 2014-02-14 14:30:00",
        ),
        (
            "flow\n1\n" + "2" * 200_000,
            "rows.csv, line 3: field larger than field limit (131072)",
        ),
    ],
)
def test_refused_in_one_sentence(csv, text, sentence):
    with pytest.raises(InputError) as refused:
        readings.read(csv(text), "flow")
    assert str(refused.value) == sentence


@pytest.mark.parametrize(
    "more", [{"others": ["flow"]}, {"time": "flow"}, {"series": "flow"}, {"others": ["n", "n"]}]
)
def test_a_column_has_one_use(csv, more):
    with pytest.raises(InputError, match="is asked for twice; each has one use"):
        readings.read(csv("flow,n\n1,2\n"), "flow", **more)


def test_a_file_that_is_not_there(csv):
    csv("")
    with pytest.raises(FileNotFoundError, match=r"none\.csv"):
        readings.read("none.csv", "flow")


# --- rows for a session ---------------------------------------------------------------------------

HEAD = Columns(("time", "flow"), time="time", gaps=True)


def events(text: str, columns: Columns) -> list[list[float]]:
    return [
        csv_events.event(cells, columns) for _, cells in csv_events.rows(text.split("\n"), columns)
    ]


@pytest.mark.parametrize("header", ["", "flow,time\n"])
def test_a_head_takes_times_and_gaps(header):
    rows = [("1970-01-01 00:01:00", ""), ("1970-01-01 00:02:00", "2.5"), ("180", "null")]
    text = "\n".join(",".join(reversed(row) if header else row) for row in rows)
    want = [[60, math.nan], [120, 2.5], [180, math.nan]]
    np.testing.assert_array_equal(events(header + text, HEAD), want)


@pytest.fixture
def model(tmp_path) -> str:
    """A model file whose network says that it stays as it is."""
    head = Head(Feature("flow", mean=2.0, std=3.0), time="time", step_s=60.0)
    lstm = sl.LSTM(np.zeros((4, 2)), np.zeros((4, 1)), np.zeros(4))
    dense = sl.Dense(np.zeros((3, 1)), np.zeros(3))
    sl.Model([lstm, dense], head=head, dtype="float32").save(tmp_path / "model")
    return str(tmp_path / "model")


def test_streaming_a_file_through_a_head(csv, model, capsys):
    path = csv("flow;time\n2.5;1970-01-01 00:01\n;1970-01-01 00:02\nNA;180\n4;1970-01-01 00:04Z\n")
    assert cli.main(["stream", model, path]) == 0
    header, *rows = capsys.readouterr().out.split()
    assert header == "flow_p10,flow_p50,flow_p90,score,alert,reason,status,warming"
    forecasts, statuses = zip(
        *((row.split(",")[1], row.split(",")[6]) for row in rows), strict=True
    )
    np.testing.assert_allclose([float(f) for f in forecasts], [2.5, 2.5, 2.5, 4], rtol=1e-6)
    assert statuses == ("0.0", "1.0", "1.0", "0.0")  # stepped, held


def test_rows_wider_than_the_header_in_a_stream(csv, model, capsys):
    path = csv("time,flow\n60,1,5\n120,2,\n")
    assert cli.main(["stream", model, path, "--skip-bad"]) == 1
    out, err = capsys.readouterr()
    assert len(out.split()) == 2  # the header, and line 3
    assert err == (
        "streamlstm: line 2: the row has 1 cell more than the header; "
        "write decimal points, and quote text that has commas; row skipped\n"
    )


def test_a_streams_columns_are_of_one_name(csv, model, capsys):
    assert cli.main(["stream", model, csv("time,flow,flow\n60,1,5\n")]) == 1
    assert capsys.readouterr().err == "streamlstm: 2 columns are called flow; rename them\n"


def test_a_time_cannot_be_missing_in_a_stream(csv, model, capsys):
    assert cli.main(["stream", model, csv("time,flow\n60,1\n,2\n")]) == 1
    assert capsys.readouterr().err == (
        "streamlstm: line 3: column time holds '', expected a time like 2014-02-14 14:30:00; "
        "--skip-bad would go on\n"
    )


def test_a_packed_file_is_read_as_it_is(tmp_path):
    import gzip  # noqa: PLC0415

    text = "time,flow\n2024-01-01,1\n2024-01-02,2\n"
    (tmp_path / "flow.csv").write_text(text)
    (tmp_path / "flow.csv.gz").write_bytes(gzip.compress(text.encode()))
    [plain], [packed] = (
        readings.read(str(tmp_path / n), "flow") for n in ("flow.csv", "flow.csv.gz")
    )
    assert packed.events().tobytes() == plain.events().tobytes()
    for broken in (gzip.compress(text.encode())[:-9], text.encode()):
        (tmp_path / "broken.csv.gz").write_bytes(broken)
        with pytest.raises(InputError, match=r"broken\.csv\.gz.* line \d: .* can't be unpacked"):
            readings.read(str(tmp_path / "broken.csv.gz"), "flow")


def test_a_bare_network_takes_neither():
    with pytest.raises(InputError, match="column flow holds '', expected a number"):
        events("a,flow\n1,\n", Columns(("a", "flow")))
    # A first row that is not all numbers is its header.
    with pytest.raises(InputError, match=r"the header lacks the model's input a, flow"):
        events("1970-01-01,2\n", Columns(("a", "flow")))
