"""What docs/scale.md shows of the computation: tables and sentences in Markdown, each under a name."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from .figures import GROUPS, Figures
from .model import BYTES_PER_GIGABIT, MILLION, NETWORK, Bound, Model, OtherWay, Setup

SERVERS = (8, 16, 32, 64)
# Processes, and the cores of the machine of each.
CLIENTS = ((1, 2), (1, 8), (8, 2), (8, 8))
NETWORKS = (1, 10, 25)
DEADLINES = (24, 12, 6, 3)

# The setup of the answer, and of what is said about one setup only.
TYPICAL = Setup(server_cores=32, processes=8, client_cores=8)
ALONE = Setup(server_cores=32, processes=1, client_cores=8)

Block = Callable[[Figures], str]


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table in Markdown."""
    head = list(head)
    lines = [head, ["---"] * len(head), *map(list, rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def rate(per_second: float) -> str:
    """Rows a second, to three digits."""
    return f"{float(f'{per_second:.3g}'):,.0f}/s"


def time(seconds: float) -> str:
    """Hours from one hour on, else minutes."""
    if seconds >= 3600:
        hours = seconds / 3600
        return f"{hours:.0f} h" if hours >= 10 else f"{hours:.1f} h"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes >= 1 else "under a minute"


def size(count: float) -> str:
    """Bytes in decimal units, as disks and networks have them."""
    for unit, name in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB")):
        if count >= unit:
            number = count / unit
            return f"{number:.0f} {name}" if number >= 10 else f"{number:.1f} {name}"
    return f"{count:.0f} B"


def number(value: float) -> str:
    """A figure as it stands in the file."""
    return f"{value:,.0f}" if value == int(value) else f"{value:,g}"


def clients(processes: int, cores: int) -> str:
    """The processes of a setup, for the head of a column."""
    return f"{'one process' if processes == 1 else 'eight processes'}, {cores} cores{'' if processes == 1 else ' each'}"


def answer(figures: Figures) -> str:
    """The first two sentences."""
    model = Model(figures, TYPICAL)
    alone = Model(figures, ALONE)
    return (
        f"{figures['observations'] / 1e9:g} billion observations take about **{time(model.total_seconds)}** "
        f"with eight processes of {TYPICAL.client_cores} cores against a server of {TYPICAL.server_cores} cores "
        f"and 10 Gbit/s, {rate(model.stream.per_second)}; the bound is {model.stream.by}. "
        f"One process takes about **{time(alone.total_seconds)}**, "
        f"{rate(alone.stream.per_second)}; the bound is {alone.stream.by}."
    )


def hours(figures: Figures) -> str:
    """The whole month for each server and all clients."""

    def cell(setup: Setup) -> str:
        model = Model(figures, setup)
        return f"{time(model.total_seconds)}: {model.stream.by}"

    return table(
        ["server", *(clients(*client) for client in CLIENTS)],
        (
            [f"{cores} cores", *(cell(Setup(cores, *client)) for client in CLIENTS)]
            for cores in SERVERS
        ),
    )


def stages(figures: Figures) -> str:
    """Where the time goes."""

    def row(setup: Setup) -> list[str]:
        model = Model(figures, setup)
        return [
            f"{setup.server_cores} cores",
            clients(setup.processes, setup.client_cores),
            time(model.load_seconds),
            time(model.versions_seconds),
            time(model.server_scan_seconds),
            time(model.stream_seconds),
            rate(model.stream.per_second),
            time(model.merges_afterwards_seconds),
        ]

    return table(
        [
            "server",
            "clients",
            "load traces",
            "look for versions",
            "root spans, moved traces",
            "stream",
            "rows a second",
            "merges afterwards",
        ],
        (row(Setup(cores, *client)) for cores in SERVERS for client in ((1, 8), (8, 8))),
    )


def bounds(figures: Figures) -> str:
    """What each part of the way would let through by itself, with eight processes."""
    models = [Model(figures, Setup(cores, 8, 8)) for cores in SERVERS]
    names = [bound.by for bound in models[0].stream_bounds]

    def cell(model: Model, name: str) -> str:
        bound = next(bound for bound in model.stream_bounds if bound.by == name)
        text = rate(bound.per_second)
        return f"**{text}**" if bound == model.stream else text

    return table(
        ["bound", *(f"{cores} cores" for cores in SERVERS)],
        ([name, *(cell(model, name) for model in models)] for name in names),
    )


def network(figures: Figures) -> str:
    """The same month through links of several widths."""

    def row(gigabits: float, is_lz4: bool) -> list[str]:
        model = Model(figures, Setup(32, 8, 8, gigabits, is_lz4))
        link = next(bound for bound in model.stream_bounds if bound.by == NETWORK)
        down, up = model.network_bytes
        return [
            f"{gigabits:g} Gbit/s, {'LZ4' if is_lz4 else 'uncompressed'}",
            f"{size(down)}, {size(up)}",
            rate(link.per_second),
            rate(model.stream.per_second),
            time(model.total_seconds),
            model.stream.by,
        ]

    return table(
        [
            "the server's link",
            "bytes from the server, to it",
            "the link lets through",
            "rows a second",
            "whole month",
            "bound by",
        ],
        (row(gigabits, is_lz4) for gigabits in NETWORKS for is_lz4 in (False, True)),
    )


def sizes(figures: Figures) -> str:
    """Disk, memory and bytes."""
    one, eight = (Model(figures, Setup(32, processes, 8)) for processes in (1, 8))
    peak = f"{figures['peak_mebibytes']:.0f} MiB measured, 512 MiB the limit"
    rows: list[tuple[str, Callable[[Model], str]]] = [
        ("days of the largest share", lambda m: f"{m.days}"),
        ("traces loaded by each", lambda m: f"{m.traces_to_load / 1e6:.0f}M"),
        ("disk for the trace store, each", lambda m: size(m.store_bytes)),
        (
            "disk for looking for versions, each, before it streams",
            lambda m: size(m.versions_bytes),
        ),
        ("memory of each", lambda m: peak),
        ("bytes from the server, all together", lambda m: size(m.network_bytes[0])),
        ("bytes to the server, all together", lambda m: size(m.network_bytes[1])),
        ("added to `events_full` and `events_core`", lambda m: size(m.added_bytes)),
    ]
    return table(
        ["what", "one process", "eight processes"],
        ([what, value(one), value(eight)] for what, value in rows),
    )


def deadlines(figures: Figures) -> str:
    """What it takes to stream the month in a given time."""
    model = Model(figures, TYPICAL)

    def row(hours_left: int) -> list[str]:
        per_second = model.events / hours_left / 3600
        millions = per_second / MILLION
        return [
            f"{hours_left} h",
            rate(per_second),
            f"{millions * (model.write_seconds + model.merge_seconds):.1f}",
            f"{millions * model.merge_seconds:.1f}",
            f"{millions * model.tool_seconds:.1f}",
            f"{millions * model.write_seconds / figures['server_cores_per_segment']:.0f}",
            f"{per_second * model.bytes_sent / BYTES_PER_GIGABIT:.1f} Gbit/s",
            f"{per_second * model.disk_bytes / 1e6:,.0f} MB/s",
        ]

    return table(
        [
            "stream in",
            "rows a second",
            "server cores",
            "of them for merges",
            "client cores",
            "segments at once",
            "network, each way, LZ4",
            "server disk",
        ],
        map(row, DEADLINES),
    )


def other_ways(figures: Figures) -> str:
    """The join inside of ClickHouse, beside eight processes."""

    def cell(seconds: float, bound: Bound) -> str:
        return f"{time(seconds)} ({rate(bound.per_second)}, {bound.by})"

    def ours(is_lz4: bool) -> Callable[[int], str]:
        def of(cores: int) -> str:
            model = Model(figures, Setup(cores, 8, 8, is_lz4=is_lz4))
            return cell(model.total_seconds, model.stream)

        return of

    def theirs(name: str, makes_root_spans: bool = False) -> Callable[[int], str]:
        def of(cores: int) -> str:
            way = OtherWay(figures, cores, figures[name], makes_root_spans)
            return cell(way.seconds, way.stream)

        return of

    rows = [
        ("eight processes of 8 cores, LZ4", ours(True)),
        ("the same, uncompressed", ours(False)),
        ("`--engine clickhouse`", theirs("engine_rows_per_second", makes_root_spans=True)),
        ("join, as many statements as cores", theirs("join_two_rows_per_second")),
        ("`INSERT … SELECT` without a join, likewise", theirs("limit_two_rows_per_second")),
    ]
    return table(
        ["way", *(f"{cores} cores" for cores in SERVERS)],
        ([what, *map(value, SERVERS)] for what, value in rows),
    )


def join_costs(figures: Figures) -> str:
    """What a join takes besides time."""
    one = figures["join_rows_per_second"]
    busy = one * figures["join_server_seconds"] / MILLION
    seconds = figures["observations"] / one
    memory = figures["traces"] * figures["join_bytes_per_trace"]
    return (
        f"One statement keeps {busy:.1f} cores busy, however many there are: at {rate(one)} the month takes "
        f"{time(seconds)}. Its memory for {figures['traces'] / 1e6:.0f}M traces is about {size(memory)}, "
        "shared out among the statements if each takes days of its own."
    )


def changes(figures: Figures) -> list[tuple[str, dict[str, float]]]:
    """What may be otherwise than it was taken to be."""
    return [
        ("as computed", {}),
        (
            "the program's own time as with 1M traces",
            {"tool_seconds_many_traces": figures["tool_seconds_few_traces"]},
        ),
        (
            "the server's time for writing twice as long",
            {"server_seconds_write": 2 * figures["server_seconds_write"]},
        ),
        ("merges twice as dear", {"merge_server_seconds": 2 * figures["merge_server_seconds"]}),
        ("merges of 4 parts, not of 10", {"parts_of_a_merge": 4}),
        ("32 threads for merges, not 16", {"merge_threads": 32}),
        ("a segment keeps half a core of the server busy", {"server_cores_per_segment": 0.5}),
        ("a segment keeps two cores of the server busy", {"server_cores_per_segment": 2}),
        ("8 segments at once in each process (`--concurrency 8`)", {"most_segments_at_once": 8}),
        ("a server's disk of 500 MB/s", {"server_disk_bytes_per_second": 5e8}),
    ]


def span(figures: Figures) -> str:
    """Between what the answer lies, had one figure been another."""
    models = [Model(figures.changed(**values), TYPICAL) for _, values in changes(figures)]
    least, most = (time(pick(m.total_seconds for m in models)) for pick in (min, max))
    return f"Had one of its figures been another, the first answer would be {least} to {most}."


def sensitivity(figures: Figures) -> str:
    """The answer, had a figure been another."""

    def cells(given: Figures, setup: Setup) -> list[str]:
        model = Model(given, setup)
        return [time(model.total_seconds), rate(model.stream.per_second), model.stream.by]

    def row(what: str, values: dict[str, float]) -> list[str]:
        given = figures.changed(**values)
        return [what, *cells(given, TYPICAL), *cells(given, ALONE)]

    head = ["if"]
    for name in ("eight processes", "one process"):
        head += [name, "rows a second", "bound by"]
    return table(head, (row(what, values) for what, values in changes(figures)))


def merges(figures: Figures) -> str:
    """The merges that the tables reckon with."""
    model = Model(figures, TYPICAL)
    parts = model.events / figures["segment_rows"]
    return (
        f"{model.events / 1e9:.1f} billion events become {parts:,.0f} parts of {size(model.part_bytes)}. "
        f"To keep fewer than {figures['most_parts']:.0f}, the server merges each event "
        f"{model.passes_during:.1f} times during the run, {figures['parts_of_a_merge']:.0f} parts at once, and "
        f"{model.passes_in_all:.1f} times until all parts are as large as it makes them. A merge of a million events "
        f"takes {figures['merge_server_seconds']:.1f} s of its processors, writing them "
        f"{figures['server_seconds_write']:.1f} s."
    )


def small_run(figures: Figures) -> str:
    """How far the processor times of the small run can be trusted."""
    small, quiet = figures["scale_server_seconds"], figures["server_seconds_write"]
    return (
        f"In the small run, which measured bytes, merges and scans, an event took {small / quiet:.2f} times as much of "
        "the server's processors as in docs/benchmarks.md. Its other processor times are off by about as much."
    )


def inputs(figures: Figures) -> str:
    """All figures that went in."""
    titles = {
        "workload": "the month",
        "readme": "docs/benchmarks.md",
        "bench": "a small run",
        "code": "the program and ClickHouse",
        "assumed": "assumed",
    }
    rows = (
        [titles[group], figure.what, f"{number(figure.value)} {figure.unit}", figure.source]
        for group in GROUPS
        for _, figure in figures.of_group(group)
    )
    runs = "\n".join(f"- {run}" for run in figures.runs.values())
    return table(["from", "figure", "value", "source"], rows) + "\n\n" + runs


# Name of a block in the document, and what makes it.
BLOCKS: dict[str, Block] = {
    "answer": answer,
    "span": span,
    "hours": hours,
    "stages": stages,
    "bounds": bounds,
    "deadlines": deadlines,
    "merges": merges,
    "network": network,
    "sizes": sizes,
    "other ways": other_ways,
    "join": join_costs,
    "sensitivity": sensitivity,
    "small run": small_run,
    "inputs": inputs,
}
