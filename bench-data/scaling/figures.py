"""The figures that the computation starts from, and where each comes from.

They stand in benchmark-figures.json: those of docs/benchmarks.md, those that only `make bench
BENCH_PARTS="scale traces network"` measures, those of the code, and assumptions. `take` replaces the
measured ones by those of a results.json of the benchmark, as far as it has the parts.
"""

from __future__ import annotations

import json
import shlex
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# The groups of figures in the file, in the order in which they are shown.
GROUPS = ("workload", "readme", "bench", "code", "assumed")

# What the benchmark writes: JSON whose shape `benchmark/runs.py` decides.
Results = Any
Measurement = Any


@dataclass(frozen=True)
class Figure:
    """One figure: its value, its unit, what it is, and who says so."""

    group: str
    value: float
    unit: str
    what: str
    source: str


class Figures:
    """All figures: `figures["store_bytes_per_trace"]` is the value of one."""

    def __init__(self, by_name: dict[str, Figure], runs: dict[str, str]):
        self.by_name = by_name
        # Of the runs that measured something: that of docs/benchmarks.md, and parts of the benchmark since.
        self.runs = runs

    def __getitem__(self, name: str) -> float:
        return self.by_name[name].value

    def of_group(self, group: str) -> Iterator[tuple[str, Figure]]:
        """Names and figures of a group, in the order of the file."""
        return ((name, f) for name, f in self.by_name.items() if f.group == group)

    def changed(self, **values: float) -> Figures:
        """The same figures, but for some that have other values."""
        changed = {
            name: Figure(f.group, values.get(name, f.value), f.unit, f.what, f.source)
            for name, f in self.by_name.items()
        }
        return Figures(changed, self.runs)


def read(path: Path) -> Figures:
    """The figures of a file. Raises ValueError with a sentence where one lacks something."""
    document = json.loads(path.read_text(encoding="utf-8"))
    by_name: dict[str, Figure] = {}
    for group in GROUPS:
        for name, given in document[group].items():
            lacking = [key for key in ("value", "unit", "what", "source") if key not in given]
            if lacking:
                raise ValueError(f"{path}: {group}.{name} lacks {', '.join(lacking)}")
            by_name[name] = Figure(group, **given)
    return Figures(by_name, document["benchmark"])


def take(path: Path, results: Results) -> list[str]:
    """Writes what a run of the benchmark measured into the file of figures, and gives their names."""
    document = json.loads(path.read_text(encoding="utf-8"))
    taken = []
    for name, (part, value) in MEASURED.items():
        measured = results["parts"].get(part)
        number = value(measured["measurements"]) if measured else None
        if number is None:
            continue
        group = next(group for group in GROUPS if name in document[group])
        figure = document[group][name]
        figure["value"] = float(f"{number:.4g}")
        figure["source"] = f"part `{part}`"
        document["benchmark"][part] = _run(part, measured)
        taken.append(name)
    text = json.dumps(document, indent=2, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")
    return taken


def _run(part: str, measured: Results) -> str:
    """How a part was measured, with which program and on what."""
    ours = ("BENCH_PROGRAMS", "BENCH_RESULTS", "BENCH_DATA")
    settings = shlex.split(measured["command"])[2:]
    kept = [setting for setting in settings if setting.partition("=")[0] not in ours]
    command = " ".join(
        f'{name}="{value}"' if " " in value else f"{name}={value}"
        for name, _, value in (setting.partition("=") for setting in kept)
    )
    machine = measured["machine"]
    return (
        f"Part `{part}`: `make bench {command}` with {machine['events_backfill']}, "
        f"{machine['cores']} cores of {machine['processor']}, "
        f"{machine['memory_bytes'] / 2**30:.0f} GiB, ClickHouse {machine['clickhouse']}"
    )


def _one(measurements: list[Measurement], **wanted: Any) -> Measurement | None:
    """The first measurement that has these values."""
    return next((m for m in measurements if all(m.get(k) == v for k, v in wanted.items())), None)


Value = Callable[[list[Measurement]], float | None]


def _of(number: Callable[[Measurement], float], **wanted: Any) -> Value:
    """A number of the measurement that has these values, if there is one."""

    def value(measurements: list[Measurement]) -> float | None:
        found = _one(measurements, **wanted)
        return number(found) if found else None

    return value


def _per_second(run: Measurement) -> float:
    return float(run["per_second"])


def _streaming(run: Measurement) -> float:
    """Seconds of the program's processors for a million observations."""
    return float(run["processor_seconds_stream"] / run["observations"] * 1e6)


def _server(name: str) -> Callable[[Measurement], float]:
    """Seconds of the server's processors for a million observations, the median of all rounds."""

    def value(run: Measurement) -> float:
        return float(statistics.median(run[name]) / run["observations"] * 1e6)

    return value


def _query(purpose: str, what: str) -> Callable[[Measurement], float]:
    """What a query took for a million rows that it read."""
    return lambda run: run["queries"][purpose][what] / run["queries"][purpose]["rows"] * 1e6


def _merge(run: Measurement) -> float:
    """Seconds of the server's processors for a million events that are merged once, in both tables."""
    seconds = (merge["processor_seconds"] / merge["rows"] for merge in run["merges"].values())
    return float(sum(seconds)) * 1e6


def _written(run: Measurement) -> float:
    """Seconds of the server's processors for a million events, without what each process asks besides."""
    asked = sum(query["processor_seconds"] for query in run["queries"].values())
    events = run["stored"]["events_full"]["rows"]
    return float((run["server_processor_seconds"] - asked) / events * 1e6)


def _bytes_a_row(table: str) -> Callable[[Measurement], float]:
    return lambda run: run["stored"][table]["bytes_on_disk"] / run["stored"][table]["rows"]


def _versions(run: Measurement) -> float:
    """Seconds of the program's processors for a million rows that it looks for versions."""
    return float(run["processor_seconds_versions"] / run["queries"]["versions"]["rows"] * 1e6)


def _sent(run: Measurement) -> float:
    """Bytes that travel for one event, in the direction that carries more of them."""
    return float(max(run["bytes_to_server"], run["bytes_from_server"]) / run["observations"])


def _lz4_of_server(measurements: list[Measurement]) -> float | None:
    """What LZ4 costs the server for a million observations, from two runs through the same link."""
    none, lz4 = (_one(measurements, compression=name) for name in ("none", "lz4"))
    if not none or not lz4:
        return None
    with_lz4, without = (
        run["server_processor_seconds"] / run["observations"] for run in (lz4, none)
    )
    return float((with_lz4 - without) * 1e6)


def _slowest_streaming(compression: str) -> Value:
    """The row "the program's own per million" of docs/benchmarks.md: the worst of the targets."""

    def value(measurements: list[Measurement]) -> float | None:
        runs = [
            run
            for run in measurements
            if run.get("peer") == "tool"
            and run["compression"] == compression
            and run["payload"] == "typical"
        ]
        return max(map(_streaming, runs), default=None)

    return value


def _load_rate(run: Measurement) -> float:
    return float(run["report"]["traces_loaded"] / run["report"]["seconds"]["load"])


FULL = {"payload": "typical", "target": "full"}
TOOL = {**FULL, "peer": "tool", "compression": "none"}
MANY = {"traces": 100_000_000, "target": "null"}
SERVER = "server_processor_seconds_of_all"
QUIET = "server_processor_seconds_until_quiet_of_all"

# Name of a figure, the part that measures it, and how it is read from the part's measurements.
MEASURED: dict[str, tuple[str, Value]] = {
    "rows_per_second_two_cores": ("throughput", _of(_per_second, **TOOL)),
    "join_rows_per_second": ("throughput", _of(_per_second, **FULL, peer="hash")),
    "join_two_rows_per_second": ("throughput", _of(_per_second, **FULL, peer="hash-2")),
    "engine_rows_per_second": ("throughput", _of(_per_second, **FULL, peer="tool-clickhouse")),
    "limit_two_rows_per_second": ("throughput", _of(_per_second, **FULL, peer="limit-2")),
    "server_seconds_write": ("throughput", _of(_server(SERVER), **TOOL)),
    "server_seconds_until_quiet": ("throughput", _of(_server(QUIET), **TOOL)),
    "join_server_seconds": ("throughput", _of(_server(SERVER), **FULL, peer="hash")),
    "tool_seconds_few_traces": ("throughput", _slowest_streaming("none")),
    "tool_seconds_few_traces_lz4": ("throughput", _slowest_streaming("lz4")),
    "tool_seconds_many_traces": ("large", _of(_streaming, **MANY)),
    "load_traces_per_second": ("large", _of(_load_rate, **MANY)),
    "store_bytes_per_trace": (
        "large",
        _of(lambda run: run["report"]["store_bytes"] / run["report"]["traces_loaded"], **MANY),
    ),
    "peak_mebibytes": ("large", _of(lambda run: run["peak_bytes"] / 2**20, **MANY)),
    "load_server_seconds": (
        "traces",
        _of(lambda run: run["server_processor_seconds"] / run["report"]["traces_loaded"] * 1e6),
    ),
    "load_bytes_per_trace": (
        "traces",
        _of(lambda run: run["bytes_of_traces"] / run["report"]["traces_loaded"]),
    ),
    "bytes_per_row": ("network", _of(_sent, compression="none")),
    "bytes_per_row_lz4": ("network", _of(_sent, compression="lz4")),
    "server_seconds_lz4": ("network", _lz4_of_server),
    "scale_server_seconds": ("scale", _of(_written)),
    "merge_server_seconds": ("scale", _of(_merge)),
    "full_bytes_per_event": ("scale", _of(_bytes_a_row("events_full"))),
    "core_bytes_per_event": ("scale", _of(_bytes_a_row("events_core"))),
    "source_bytes_per_row": ("scale", _of(_bytes_a_row("observations"))),
    "versions_tool_seconds": ("scale", _of(_versions)),
    "versions_server_seconds": ("scale", _of(_query("versions", "processor_seconds"))),
    "roots_server_seconds": ("scale", _of(_query("roots", "processor_seconds"))),
    "moved_server_seconds": ("scale", _of(_query("moved", "processor_seconds"))),
}
