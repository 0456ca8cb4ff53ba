"""What a durable session costs: a commit of the journal, a row written and read."""

from __future__ import annotations

from contextlib import closing

import pytest

from streamlstm.store import SessionRow, open_store

ROWS = 1000


@pytest.mark.parametrize("record_bytes", [100, 10_000])
@pytest.mark.parametrize("durability", ["async", "sync"])
def test_append_commit(benchmark, tmp_path, durability, record_bytes):
    """One record and its commit, with the journal trimmed every 5,000."""
    record = bytes(record_bytes)
    with closing(open_store(tmp_path, durability)) as store:

        def append() -> None:
            id = store.append(record)
            if id % 5000 == 0:
                store.trim(id - 10)
            store.commit()

        benchmark(append)


def test_put(benchmark, tmp_path):
    """1,000 rows of 64 units, as a checkpoint of dirty sessions puts them."""
    rows = [
        SessionRow(k, 1, f"sensor-{k}", 1, k, 9, bytes(512), bytes(200), False)
        for k in range(1, ROWS + 1)
    ]
    with closing(open_store(tmp_path, "async")) as store:

        def put() -> None:
            store.put(rows)
            store.commit()

        benchmark(put)
        if benchmark.stats:
            benchmark.extra_info["row_us"] = 1e6 * benchmark.stats.stats.min / ROWS


def test_get(benchmark, tmp_path):
    row = SessionRow(1, 1, "sensor", 1, 1, 9, bytes(512), bytes(200), False)
    with closing(open_store(tmp_path, "async")) as store:
        store.put([row])
        assert benchmark(store.get, 1) == row
