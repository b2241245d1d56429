"""One run of events-backfill or of a peer, and what it took. Every run gives a dictionary."""

import json
import os
import shutil
import statistics
import sys
import time
from dataclasses import dataclass

from . import datasets, processes
from .server import QueryError

TOOL_AGENT = "startsWith(http_user_agent, 'events-backfill/')"

# What the code of ClickHouse's exceptions means.
MEMORY_LIMIT_EXCEEDED = 241


@dataclass
class Bench:
    """What every run needs."""

    server: object
    tool: str
    python: str
    workplace: str
    cores: int


def _measured(bench, name, dataset, target, work):
    """Runs `work`, which gives a dictionary, and adds what is measured of every run."""
    print(f"    {name:<28} → {datasets.TARGET_NAMES[target]:<34}", end="", flush=True)
    server_before = bench.server.processor_seconds()
    started = time.monotonic()
    result = {"name": name, "payload": dataset.payload, "target": target, "traces": dataset.traces}
    result |= work()
    result.setdefault("seconds", time.monotonic() - started)
    result["server_processor_seconds"] = bench.server.processor_seconds() - server_before
    result.setdefault("observations", dataset.observations)
    if result.get("error_code"):
        print(f"ended with exception {result['error_code']} after {result['seconds']:.1f} s")
    else:
        result["per_second"] = result["observations"] / result["seconds"]
        print(f"{result['per_second']:>12,.0f} observations/s {result['seconds']:8.1f} s")
    return result


def median(measurements):
    """The measurement in the middle, with the seconds of all."""
    middle = statistics.median_low(measurement["seconds"] for measurement in measurements)
    chosen = next(m for m in measurements if m["seconds"] == middle)
    return chosen | {"seconds_of_all": [m["seconds"] for m in measurements]}


def run_statement(bench, dataset, target, name):
    """INSERT … SELECT inside of ClickHouse: `limit`, or the name of a join algorithm."""
    file_name = "peer-limit.sql" if name == "limit" else "peer-join.sql"
    settings = {} if name == "limit" else {"join_algorithm": name}

    def work():
        began = time.time()
        parameters = {"partition": datasets.PARTITION, "target": datasets.TARGETS[target]}
        result = {}
        try:
            bench.server.query(
                datasets.read(file_name),
                dataset.database,
                parameters,
                max_insert_threads=bench.cores,
                async_insert=0,
                **settings,
            )
        except QueryError as error:
            result = {"error_code": error.code, "error": str(error)[:500]}
        log = bench.server.queries_since(
            began, "query_duration_ms / 1000 AS seconds, memory_usage", "query_kind = 'Insert'"
        )
        return result | {"seconds": log[0]["seconds"], "peak_bytes": log[0]["memory_usage"]}

    title = "INSERT … SELECT, no join" if name == "limit" else f"join, {name}"
    return _measured(bench, title, dataset, target, work) | {"peer": name}


def run_python(bench, dataset, target):
    """The script that does it the old way."""
    command = [bench.python, os.path.join(datasets.BENCH_DATA, "backfill_the_old_way.py")]
    command += ["--port", str(bench.server.port), "--database", dataset.database]
    command += ["--partition", datasets.PARTITION, "--target", datasets.TARGETS[target]]

    def work():
        environment = {"PATH": os.environ["PATH"], "TZ": "UTC"}
        outcome = processes.run(command, environment, bench.workplace)
        if outcome.exit_code != 0:
            sys.exit(f"The Python script failed:\n{outcome.output[-3000:]}")
        summary = json.loads(outcome.output.splitlines()[-1])
        return summary | {
            "seconds": outcome.seconds,
            "traces": dataset.traces,
            "peak_bytes": outcome.peak_bytes,
            "processor_seconds": outcome.processor_seconds,
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
    arguments=(),
    examine=lambda began: {},
):
    """events-backfill itself, with default settings but for the compression and the arguments; what
    `examine` finds of it once it has ended is added."""
    state = os.path.join(bench.workplace, "state")
    report_file = os.path.join(bench.workplace, "report.json")
    command = [bench.tool, "--partition", datasets.PARTITION, "--state-dir", state]
    command += ["--target-table", datasets.TARGETS[target], "--compression", compression]
    command += ["--report", report_file, *arguments]
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
            }
            | _processor_time(bench, outcome, began)
            | _rows_read(bench, dataset, began)
            | examine(began)
        )

    name = f"events-backfill, {compression}"
    return _measured(bench, name, dataset, target, work) | {
        "peer": "tool",
        "compression": compression,
    }


def _processor_time(bench, outcome, began):
    """The tool's processor time, in total and while it streamed. Streaming begins with the first
    query of a segment, whose time is in the server's log, on the same clock."""
    first = bench.server.queries_since(
        began,
        "min(query_start_time_microseconds) AS moment, toUnixTimestamp64Micro(moment) / 1e6 AS seconds",
        f"{TOOL_AGENT} AND query_kind = 'Select' AND query LIKE '%observations%FINAL%'",
    )[0]["seconds"]
    before_streaming = outcome.processor_seconds_until(first)
    return {
        "processor_seconds": outcome.processor_seconds,
        "user_seconds": outcome.user_seconds,
        "system_seconds": outcome.system_seconds,
        "processor_seconds_load": before_streaming,
        "processor_seconds_stream": outcome.processor_seconds - before_streaming,
    }


def _rows_read(bench, dataset, began):
    """Rows that the tool's queries read, and how many rows there are."""
    log = bench.server.queries_since(
        began,
        "sum(read_rows) AS all_tables, "
        f"sumIf(read_rows, NOT has(tables, '{dataset.database}.traces')) AS observations",
        f"{TOOL_AGENT} AND query_kind = 'Select'",
    )[0]
    observations = datasets.partition_rows(bench.server, dataset, "observations")
    traces = datasets.partition_rows(bench.server, dataset, "traces")
    return {
        "rows_read": log["observations"],
        "rows_read_all": log["all_tables"],
        "partition_rows": observations["rows"],
        "partition_rows_all": observations["rows"] + traces["rows"],
        "partition_parts": observations["parts"],
    }


def replay_trace_queries(bench, dataset, began, output_format):
    """Runs the queries with which the tool loaded traces once more, one after another, and gives the
    seconds they took. Their result goes to /dev/null."""
    queries = bench.server.queries_since(
        began,
        "query, Settings AS settings, query_start_time_microseconds",
        f"{TOOL_AGENT} AND query_kind = 'Select' AND read_rows > 0 AND has(tables, '{dataset.database}.traces')",
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
