"""Exchanges: what is sent to a destination arrives there, in order, and nothing else does."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from datakit import exchange, storage

DESTINATIONS = 5


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.integers(0, DESTINATIONS - 1), max_size=20), max_size=4))
def test_rows_arrive_where_they_were_sent_in_their_order(tmp_path_factory, shards):
    folder = str(tmp_path_factory.mktemp("exchange"))
    files, sizes, sent = [], [], []
    for number, places in enumerate(shards):
        names = [f"{number}-{row}" for row in range(len(places))]
        files.append(storage.join(folder, f"{number}.parquet"))
        table = pa.table({"name": pa.array(names, pa.string())})
        sizes.append(exchange.scatter(files[-1], table, np.array(places, np.int64), DESTINATIONS))
        sent += zip(places, names, strict=True)
    for destination in range(DESTINATIONS):
        arrived = exchange.gather(files, sizes, destination)
        expected = [name for place, name in sent if place == destination]
        assert ([] if arrived is None else arrived.column("name").to_pylist()) == expected


def test_row_groups_are_read_one_by_one(tmp_path):
    path = str(tmp_path / "rows.parquet")
    rows = storage.ROW_GROUP_ROWS + 10
    storage.write_table(path, pa.table({"n": np.arange(rows)}))
    assert exchange.row_groups(path) == 2
    assert exchange.read_row_group(path, 1).column("n").to_pylist() == list(range(storage.ROW_GROUP_ROWS, rows))


def test_a_file_without_rows_has_no_row_groups(tmp_path):
    path = str(tmp_path / "rows.parquet")
    storage.write_table(path, pa.table({"n": np.arange(0)}))
    assert exchange.row_groups(path) == 0
