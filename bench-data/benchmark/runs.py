"""One run of events-backfill or of a peer, and what it took. Every run gives a dictionary."""

import itertools
import json
import os
import shutil
import statistics
import sys
import threading
import time
from dataclasses import dataclass

from . import datasets, processes
from .server import QueryError

# No merge was seen after a run if the server was quiet so soon.
QUIET_AT_ONCE_SECONDS = 0.2

TOOL_AGENT = "startsWith(http_user_agent, 'events-backfill/')"

# The SELECT of a segment.
OF_SEGMENT = "query_kind = 'Select' AND query LIKE '%observations%FINAL%'"

# The look at all rows of the month, and of later ones, for versions of one observation that FINAL
# leaves side by side.
OF_VERSIONS = (
    "query_kind = 'Select' AND query LIKE '%observations%' AND query LIKE '%AS c4 FROM%' "
    "AND query NOT LIKE '%FINAL%'"
)

# What carries the rows: the tool's statements, and those of the Python script.
OF_TOOL = f"{TOOL_AGENT} AND (query_kind = 'Insert' OR ({OF_SEGMENT}))"
OF_PYTHON = (
    "http_user_agent LIKE '%clickhouse-connect%' AND "
    "(query_kind = 'Insert' OR (query_kind = 'Select' AND query LIKE '%FINAL%'))"
)

# What clickhouse-connect decides itself.
OF_CLICKHOUSE_CONNECT = ("send_progress_in_http_headers",)

# Settings of ours that would only slow a peer down: they make blocks small enough for a client.
NOT_FOR_PEERS = ("max_block_size", "preferred_block_size_bytes", "use_query_condition_cache")


@dataclass
class Bench:
    """What every run needs."""

    server: object
    tool: str
    python: str
    workplace: str
    cores: int
    # What the tool gives its own statements, once that is known: see `learn_settings`.
    settings: dict = None


def _measured(bench, name, dataset, target, work):
    """Runs `work`, which gives a dictionary, and adds what is measured of every run."""
    print(f"    {name:<28} → {datasets.TARGET_NAMES[target]:<34}", end="", flush=True)
    server_before = bench.server.processor_seconds()
    started = time.monotonic()
    result = {"name": name, "payload": dataset.payload, "target": target, "traces": dataset.traces}
    result |= work()
    result.setdefault("seconds", time.monotonic() - started)
    result["server_processor_seconds"] = bench.server.processor_seconds() - server_before
    ended = time.monotonic()
    quiet = bench.server.rest()
    result["server_processor_seconds_until_quiet"] = (
        bench.server.processor_seconds() - server_before
    )
    # Merges that had ended when their end was looked for are taken to have ended with the run.
    has_merged = quiet > ended + QUIET_AT_ONCE_SECONDS
    result["seconds_until_quiet"] = quiet - started if has_merged else result["seconds"]
    result.setdefault("observations", dataset.observations)
    if result.get("error_code"):
        print(f"ended with exception {result['error_code']} after {result['seconds']:.1f} s")
    else:
        result["per_second"] = result["observations"] / result["seconds"]
        print(f"{result['per_second']:>12,.0f} observations/s {result['seconds']:8.1f} s")
    return result


# What of a measurement is kept of every round.
OF_ROUNDS = (
    "seconds",
    "seconds_until_quiet",
    "server_processor_seconds",
    "server_processor_seconds_until_quiet",
)


def median(measurements):
    """The measurement in the middle, with times of all rounds, in their order."""
    middle = statistics.median_low(measurement["seconds"] for measurement in measurements)
    chosen = next(m for m in measurements if m["seconds"] == middle)
    rounds = {f"{name}_of_all": [m[name] for m in measurements] for name in OF_ROUNDS}
    return chosen | rounds


def learn_settings(bench, dataset):
    """Runs the tool once, which warms the page cache too, and takes from the server's log the settings
    that it gives its inserts and the SELECT of a segment: the peers get them as well."""
    ours = {}
    for settings in run_tool(bench, dataset, "null")["settings"]:
        ours |= settings
    if ours.get("optimize_on_insert") != "0":
        sys.exit(f"The settings of the tool's statements could not be read: {ours}")
    bench.settings = {
        name: value for name, value in sorted(ours.items()) if name not in NOT_FOR_PEERS
    }
    kept = ", ".join(name for name in NOT_FOR_PEERS if name in ours)
    print(f"    the peers get {len(bench.settings)} settings of the tool's, all but {kept}")


def _settings_since(bench, began, condition):
    """What each statement was given, as the server understood it."""
    log = bench.server.queries_since(began, "query_kind, Settings AS settings", condition)
    if not log:
        sys.exit(f"The server's log has no statements with {condition}.")
    # Inserts last: what they have otherwise counts for peers that write.
    log.sort(key=lambda query: query["query_kind"] == "Insert")
    return [query["settings"] for query in log]


def _require_our_settings(bench, statements, but=()):
    """A peer that lacks a setting of ours would be slower for no reason of its own."""
    for settings in statements:
        lacking = {
            name: (value, settings.get(name))
            for name, value in bench.settings.items()
            if settings.get(name) != value and name not in but
        }
        if lacking:
            sys.exit(f"A peer ran without settings of ours (ours, its own): {lacking}")


# The whole month, or its halves: the first day of each, and the one after the last.
PORTIONS = {1: ("2024-06-01", "2024-07-01"), 2: ("2024-06-01", "2024-06-16", "2024-07-01")}


def run_statement(bench, dataset, target, name, at_once=1):
    """INSERT … SELECT inside of ClickHouse: `limit`, or the name of a join algorithm. One statement, or
    two at once of half of the month each: one alone keeps hardly more than one core busy."""
    file_name = "peer-limit.sql" if name == "limit" else "peer-join.sql"
    settings = {} if name == "limit" else {"join_algorithm": name}
    settings = bench.settings | settings | {"max_insert_threads": max(1, bench.cores // at_once)}
    errors = []

    def insert(first, after):
        parameters = {"partition": datasets.PARTITION, "target": datasets.TARGETS[target]}
        parameters |= {"first": first, "after": after}
        try:
            bench.server.query(datasets.read(file_name), dataset.database, parameters, **settings)
        except QueryError as error:
            errors.append({"error_code": error.code, "error": str(error)[:500]})

    def work():
        began, started = time.time(), time.monotonic()
        days = PORTIONS[at_once]
        threads = [threading.Thread(target=insert, args=pair) for pair in itertools.pairwise(days)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        seconds = time.monotonic() - started
        log = bench.server.queries_since(began, "memory_usage, read_rows, read_bytes", "query_kind = 'Insert'")
        statements = _settings_since(bench, began, "query_kind = 'Insert'")
        _require_our_settings(bench, statements)
        return (errors[0] if errors else {}) | {
            "seconds": seconds,
            "peak_bytes": sum(query["memory_usage"] for query in log),
            "rows_read": sum(query["read_rows"] for query in log),
            "bytes_read": sum(query["read_bytes"] for query in log),
            "settings": statements,
        }

    title = "INSERT … SELECT, no join" if name == "limit" else f"join, {name}"
    peer = name
    if at_once > 1:
        title, peer = f"{title}, {at_once} at once", f"{name}-{at_once}"
    return _measured(bench, title, dataset, target, work) | {"peer": peer}


def run_python(bench, dataset, target):
    """The script that does it the old way."""
    command = [bench.python, os.path.join(datasets.BENCH_DATA, "backfill_the_old_way.py")]
    command += ["--port", str(bench.server.port), "--database", dataset.database]
    command += ["--partition", datasets.PARTITION, "--target", datasets.TARGETS[target]]
    command += ["--settings", json.dumps(bench.settings)]

    def work():
        began = time.time()
        environment = {"PATH": os.environ["PATH"], "TZ": "UTC"}
        outcome = processes.run(command, environment, bench.workplace)
        if outcome.exit_code != 0:
            sys.exit(f"The Python script failed:\n{outcome.output[-3000:]}")
        summary = json.loads(outcome.output.splitlines()[-1])
        statements = _settings_since(bench, began, OF_PYTHON)
        _require_our_settings(bench, statements, but=OF_CLICKHOUSE_CONNECT)
        return summary | {
            "seconds": outcome.seconds,
            "traces": dataset.traces,
            "peak_bytes": outcome.peak_bytes,
            "processor_seconds": outcome.processor_seconds,
            "settings": statements,
        }

    return _measured(bench, "Python script", dataset, target, work) | {"peer": "python"}


def run_tool(
    bench,
    dataset,
    target,
    compression="none",
    url=None,
    memory_group=None,
    may_fail=False,
    arguments=("--no-root-spans",),
    examine=lambda began: {},
    engine="embedded",
):
    """events-backfill itself, with default settings but for the compression and the arguments: no peer
    makes root spans. What `examine` finds of it once it has ended is added."""
    state = os.path.join(bench.workplace, "state")
    report_file = os.path.join(bench.workplace, "report.json")
    command = [bench.tool, "--partition", datasets.PARTITION, "--state-dir", state]
    command += ["--target-table", datasets.TARGETS[target], "--compression", compression]
    command += ["--report", report_file, "--engine", engine, *arguments]
    if target == "null":
        # An ENGINE = Null is no ReplacingMergeTree.
        command.append("--allow-duplicates")

    def work():
        shutil.rmtree(state, ignore_errors=True)
        environment = {
            "PATH": os.environ["PATH"],
            "CLICKHOUSE_URL": url or bench.server.url,
            "CLICKHOUSE_DB": dataset.database,
        }
        began = time.time()
        outcome = processes.run(command, environment, bench.workplace, memory_group)
        shutil.rmtree(state, ignore_errors=True)
        if outcome.exit_code != 0:
            if may_fail:
                return {"error_code": outcome.exit_code, "error": outcome.output[-1000:]}
            sys.exit(f"events-backfill failed:\n{outcome.output[-3000:]}")
        with open(report_file, encoding="utf-8") as file:
            report = json.load(file)
        return (
            {
                "seconds": outcome.seconds,
                "peak_bytes": report["peak_rss_bytes"],
                "report": report,
                "observations": report["observations_processed"],
                "settings": _settings_since(bench, began, OF_TOOL),
            }
            | _processor_time(bench, outcome, began)
            | _rows_read(bench, dataset, began, engine)
            | _inserts(bench, began)
            | examine(began)
        )

    is_embedded = engine == "embedded"
    name = f"events-backfill, {compression if is_embedded else engine}"
    return _measured(bench, name, dataset, target, work) | {
        "peer": "tool" if is_embedded else f"tool-{engine}",
        "compression": compression,
    }


def _processor_time(bench, outcome, began):
    """The tool's processor time, in total, while it looked for versions, and while it streamed. Streaming
    begins with the first query of a segment, whose time is in the server's log, on the same clock."""
    first = _first_moment(bench, began, OF_SEGMENT)
    before_streaming = outcome.processor_seconds_until(first)
    versions = _first_moment(bench, began, OF_VERSIONS)
    before_versions = outcome.processor_seconds_until(versions)
    return {
        "processor_seconds": outcome.processor_seconds,
        "user_seconds": outcome.user_seconds,
        "system_seconds": outcome.system_seconds,
        "processor_seconds_load": before_streaming,
        "processor_seconds_stream": outcome.processor_seconds - before_streaming,
        # Nothing else of weight happens between looking for versions and the first segment.
        "processor_seconds_versions": before_streaming - before_versions,
    }


def _first_moment(bench, began, condition):
    """When the first of the tool's queries of a kind began, in seconds since 1970."""
    return bench.server.queries_since(
        began,
        "min(query_start_time_microseconds) AS moment, toUnixTimestamp64Micro(moment) / 1e6 AS seconds",
        f"{TOOL_AGENT} AND {condition}",
    )[0]["seconds"]


def _rows_read(bench, dataset, began, engine):
    """Rows that the tool's queries read, and how many rows there are. Inserts read only where the server
    itself selects what they write."""
    kinds = "'Select'" if engine == "embedded" else "'Select', 'Insert'"
    log = bench.server.queries_since(
        began,
        "sum(read_rows) AS all_tables, sum(read_bytes) AS bytes, "
        f"sumIf(read_rows, NOT has(tables, '{dataset.database}.traces')) AS observations",
        f"{TOOL_AGENT} AND query_kind IN ({kinds})",
    )[0]
    observations = datasets.partition_rows(bench.server, dataset, "observations")
    traces = datasets.partition_rows(bench.server, dataset, "traces")
    return {
        "rows_read": log["observations"],
        "rows_read_all": log["all_tables"],
        "bytes_read_all": log["bytes"],
        "partition_rows": observations["rows"],
        "partition_rows_all": observations["rows"] + traces["rows"],
        "partition_parts": observations["parts"],
    }


def _inserts(bench, began):
    """How many inserts there were, and how many of them the server refused."""
    return bench.server.queries_since(
        began,
        "count() AS inserts, countIf(exception_code != 0) AS inserts_refused",
        f"{TOOL_AGENT} AND query_kind = 'Insert'",
    )[0]


def _of_traces(dataset):
    """The queries with which the tool loads traces."""
    return f"{TOOL_AGENT} AND query_kind = 'Select' AND read_rows > 0 AND has(tables, '{dataset.database}.traces')"


def result_bytes_of_traces(bench, dataset, began):
    """Bytes of the traces that the server sent, as it holds them: about what travels uncompressed."""
    columns = "sum(result_bytes) AS bytes"
    return bench.server.queries_since(began, columns, _of_traces(dataset))[0]["bytes"]


def queries_by_purpose(server, began, purposes):
    """Rows, seconds and processor seconds of the tool's queries on the server, by their purpose, which is a
    condition on the query log each."""
    columns = (
        "count() AS queries, sum(read_rows) AS rows, sum(query_duration_ms) / 1000 AS seconds, "
        "sum(ProfileEvents['UserTimeMicroseconds'] + ProfileEvents['SystemTimeMicroseconds']) / 1e6 "
        "AS processor_seconds"
    )
    return {
        purpose: server.queries_since(began, columns, f"{TOOL_AGENT} AND ({condition})")[0]
        for purpose, condition in purposes.items()
    }


def replay_trace_queries(bench, dataset, began, output_format):
    """Runs the queries with which the tool loaded traces once more, one after another, and gives the
    seconds they took. Their result goes to /dev/null."""
    queries = bench.server.queries_since(
        began,
        "query, Settings AS settings, query_start_time_microseconds",
        _of_traces(dataset),
    )
    passed_on = ("max_block_size", "preferred_block_size_bytes", "optimize_read_in_order")
    seconds = 0.0
    for query in sorted(queries, key=lambda row: row["query_start_time_microseconds"]):
        settings = {
            name: query["settings"][name] for name in passed_on if name in query["settings"]
        }
        sql = query["query"].rpartition(" FORMAT ")[0] or query["query"]
        seconds += bench.server.discard(f"{sql} FORMAT {output_format}", dataset.database, settings)
    return seconds
