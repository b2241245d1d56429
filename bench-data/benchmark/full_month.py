"""What it costs to write each event once: runs into a month that is empty, into one that is full of a
backfill's rows, and into one that is full of live rows; and what finding the versions of observations
costs. Each in a month of several projects, and in one of a single project whose rows all lie in two
days, so that each of its many segments lies all over the target's."""

from . import datasets, runs

# Observations have ten types here, so that two days are at least twenty segments.
TYPES = "SPAN GENERATION EVENT AGENT TOOL CHAIN RETRIEVER EVALUATOR EMBEDDING GUARDRAIL".split()

# The smallest that the planner makes of parts of usual size.
SEGMENT_ROWS = 25_000

# What the queries of a run are for, and how they are told in the server's log. Among those for
# versions is the one for observations that are called as root spans.
PURPOSES = {
    "keys": "has(tables, '{database}.events_full')",
    "versions": "has(tables, '{database}.observations') AND query NOT LIKE '%FINAL%'",
    "observations": "has(tables, '{database}.observations') AND query LIKE '%FINAL%'",
}


def measure(bench, settings, spread):
    """All runs, as often as wanted, each time one after the other."""
    datasets.prepare(bench.server, spread)
    measurements = []
    for dataset, arguments in (
        (spread, []),
        (two_days(bench.server, spread), ["--segment-rows", str(SEGMENT_ROWS)]),
    ):
        rounds = [_round(bench, dataset, arguments) for _ in range(settings.number("REPEATS"))]
        measurements += [runs.median(list(same)) for same in zip(*rounds)]
        datasets.empty_targets(bench.server, dataset)
    return {"measurements": measurements}


def two_days(server, dataset):
    """The same rows as those of one project in two days."""
    squeezed = datasets.Dataset(dataset.payload, dataset.observations, dataset.traces, "_two_days")
    if server.query(f"EXISTS TABLE {squeezed.database}.complete").strip() == "1":
        return squeezed
    print(f"    moving {dataset.description} into two days …", flush=True)
    server.query(f"DROP DATABASE IF EXISTS {squeezed.database}")
    server.query(f"CREATE DATABASE {squeezed.database}")
    server.execute_script(datasets.schema(), squeezed.database)
    types = ", ".join(f"'{name}'" for name in TYPES)
    for table, time, more in (
        ("traces", "timestamp", ""),
        ("observations", "start_time", f", [{types}][1 + cityHash64(id) % {len(TYPES)}] AS type"),
    ):
        month = f"toDateTime64('{datasets.MONTH}', 3)"
        moved = (
            f"addMilliseconds({month}, intDiv(dateDiff('millisecond', {month}, source.{time}), 15))"
        )
        server.query(
            f"INSERT INTO {table} SELECT * REPLACE ('one' AS project_id, {moved} AS {time}{more}) "
            f"FROM {dataset.database}.{table} AS source "
            "SETTINGS min_insert_block_size_rows = 1048576, min_insert_block_size_bytes = 1073741824",
            squeezed.database,
        )
        server.query(f"OPTIMIZE TABLE {table} FINAL", squeezed.database)
    server.rest()
    server.query("CREATE TABLE complete (nothing UInt8) ENGINE = Null", squeezed.database)
    return squeezed


def _round(bench, dataset, arguments):
    """Into an empty month, then once more, then once more over live rows."""
    datasets.empty_targets(bench.server, dataset)
    measurements = []
    for state in ("empty", "own", "live"):
        if state == "live":
            _make_live(bench.server, dataset)
        bench.server.rest()
        before = _events(bench.server, dataset)
        measurement = runs.run_tool(
            bench,
            dataset,
            "full",
            arguments=arguments,
            examine=lambda began: {
                "queries": runs.queries_by_purpose(bench.server, began, _purposes(dataset))
            },
        )
        measurement |= {
            "state": state,
            "shape": "two days" if dataset.suffix else "thirty days",
            "events_before": before,
            "events_after": _events(bench.server, dataset),
        }
        measurements.append(measurement)
        _tell(measurement)
    return measurements


def _make_live(server, dataset):
    """All events of the month as if Langfuse had written them."""
    for table in ("events_full", "events_core"):
        server.query(
            f"ALTER TABLE {table} UPDATE source = 'ingestion-api-dual-write' WHERE 1",
            dataset.database,
            mutations_sync=2,
        )


def _events(server, dataset):
    return int(server.query("SELECT count() FROM events_full", dataset.database))


def _purposes(dataset):
    return {
        purpose: f"query_kind = 'Select' AND ({condition.format(database=dataset.database)})"
        for purpose, condition in PURPOSES.items()
    }


def _tell(measurement):
    report = measurement["report"]
    print(
        f"        {measurement['shape']}, {measurement['state']}: {report['segments_total']} segments, "
        f"processor seconds {measurement['processor_seconds']:.1f} here and "
        f"{measurement['server_processor_seconds']:.1f} on the server, "
        f"peak {measurement['peak_bytes'] / 2**20:.0f} MiB, "
        f"{measurement['events_after'] - measurement['events_before']:,} rows more",
        flush=True,
    )
    for purpose, query in measurement["queries"].items():
        print(
            f"            {purpose:<14}{query['rows']:>12,} rows read, {query['seconds']:6.2f} s, "
            f"{query['processor_seconds']:6.2f} processor seconds, {query['queries']} queries",
            flush=True,
        )
