"""What several processes for one month would each do again, what a merge costs, and what events take on
the server's disk: what scale.py needs and no other part measures.

The month has traces of another month beside it, so that the program asks for those that moved. Root
spans are written, so that it looks for observations that are called like them."""

from . import datasets, runs
from .datasets import Dataset

# What each process asks of all rows, whatever its share, and how that is told in the server's log.
PURPOSES = {
    "versions": runs.OF_VERSIONS,
    "roots": "query LIKE '%observations%' AND query LIKE '%startsWith(o.id, %'",
    "moved": "query LIKE '%traces%' AND query LIKE '%HAVING countIf(%'",
}

# The table that is written to, and the one that its view fills.
TABLES = ("events_full", "events_core")

EARLIER_TRACES = """
INSERT INTO traces (id, timestamp, name, project_id, created_at, updated_at, event_ts)
WITH toDateTime64({month:Date}, 3) - INTERVAL 2 MONTH AS month_start
SELECT
    lower(hex(MD5(concat('earlier trace ', toString(number))))) AS id,
    addMilliseconds(month_start, intDiv(number * 2592000000, {traces:UInt64})) AS timestamp,
    'earlier' AS name,
    'clw8q2k9v0001support' AS project_id,
    timestamp AS created_at,
    timestamp AS updated_at,
    timestamp AS event_ts
FROM numbers({traces:UInt64})
SETTINGS min_insert_block_size_rows = 4194304, min_insert_block_size_bytes = 1073741824
"""


def measure(bench, settings, like):
    """One run into events_full, then one merge of all that it wrote."""
    dataset = Dataset(like.payload, like.observations, like.traces, "_two_months")
    earlier = settings.number("EARLIER_TRACES")
    datasets.prepare(bench.server, dataset)
    _add_traces(bench.server, dataset, earlier)
    datasets.empty_targets(bench.server, dataset)
    measurement = runs.run_tool(
        bench,
        dataset,
        "full",
        arguments=(),
        examine=lambda began: {"queries": runs.queries_by_purpose(bench.server, began, PURPOSES)},
    )
    measurement["stored"] = {
        table: datasets.stored(bench.server, dataset, table)
        for table in ("observations", "traces", *TABLES)
    }
    measurement["merges"] = {table: _merge(bench.server, dataset, table) for table in TABLES}
    datasets.empty_targets(bench.server, dataset)
    return {"measurements": [measurement | {"earlier_traces": earlier}]}


def _add_traces(server, dataset, traces):
    """Traces of another month, which none of the observations has."""
    server.query("ALTER TABLE traces DROP PARTITION 202404", dataset.database)
    parameters = {"month": datasets.MONTH, "traces": traces}
    server.query(EARLIER_TRACES, dataset.database, parameters)
    server.rest()


def _merge(server, dataset, table):
    """All parts of a table into one: what that takes of the server's processors."""
    before = server.processor_seconds()
    parts = datasets.stored(server, dataset, table)
    server.query(f"OPTIMIZE TABLE {table} FINAL", dataset.database)
    server.rest()
    return parts | {"processor_seconds": server.processor_seconds() - before}
