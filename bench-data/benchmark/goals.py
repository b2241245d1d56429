"""The goals, and what was measured of them.

Every goal has a function that takes the measurements of all parts and gives the rows of the table that
it can; a goal of which nothing was measured has a row that says so.
"""

import statistics
from dataclasses import asdict, dataclass

from .datasets import TARGET_NAMES

MEBIBYTE = 1024 * 1024

# Load and streaming are one program; peers are compared with all of its time.
JOINS = ("hash", "full_sorting_merge")


@dataclass
class Row:
    """A row of the table."""

    what: str
    goal: str
    figure: str = "not measured"
    peer: str = ""
    # None where there is no goal, or no figure.
    met: bool | None = None


class Measurements:
    """What all parts have measured."""

    def __init__(self, parts):
        self.parts = parts

    def select(self, part, **wanted):
        """The measurements of a part that have the given values."""
        measurements = self.parts.get(part, {}).get("measurements", [])
        return [
            m for m in measurements if all(m.get(name) == value for name, value in wanted.items())
        ]

    def first(self, part, **wanted):
        """The first of these, or None."""
        return next(iter(self.select(part, **wanted)), None)

    def typical(self, **wanted):
        """A run of the part throughput with typical payload."""
        return self.first("throughput", payload="typical", **wanted)

    def tool(self, target, compression="none"):
        """A run of the tool in the part throughput with typical payload."""
        return self.typical(target=target, peer="tool", compression=compression)


def rows(parts):
    """All rows of the table."""
    measurements = Measurements(parts)
    goals = (
        against_join,
        against_limit,
        against_python,
        server_time,
        processor_time,
        null_target,
        traces_loaded,
        many_traces,
        flat_memory,
        small_server,
        server_engine,
        rows_read,
        network,
        full_month,
        other_client,
        larger_machines,
    )
    return [row for goal in goals for row in goal(measurements)]


def as_dictionaries(table):
    """The rows for JSON."""
    return [asdict(row) for row in table]


def against_join(measurements):
    """Throughput against the faster of the two joins, and against two such statements at once."""
    for target, one, two in (("full", 1.6, 1.0), ("plain", None, 1.1)):
        tool = measurements.tool(target)
        what = f"throughput against the join, {TARGET_NAMES[target]}"
        row = Row(f"{what}, one statement", f"at least {one}x" if one else "shown")
        joins = [measurements.typical(target=target, peer=algorithm) for algorithm in JOINS]
        joins = [join for join in joins if join and "per_second" in join]
        if tool and joins:
            join = max(joins, key=lambda m: m["per_second"])
            _compare(row, tool, join, one)
        yield row
        row = Row(f"{what}, two statements at once", f"at least {two}x")
        join = measurements.typical(target=target, peer="hash-2")
        if tool and join:
            _compare(row, tool, join, two)
        yield row


def against_limit(measurements):
    """Throughput against INSERT … SELECT without a join, as two statements at once."""
    for target, least in (("full", 0.9), ("plain", 0.6)):
        what = f"throughput against the limit, {TARGET_NAMES[target]}, two statements at once"
        row = Row(what, f"at least {least}x")
        tool, limit = measurements.tool(target), measurements.typical(target=target, peer="limit-2")
        if tool and limit:
            _compare(row, tool, limit, least)
        yield row


def against_python(measurements):
    """Throughput against the script."""
    for target in ("full", "plain", "null"):
        row = Row(f"throughput against the Python script, {TARGET_NAMES[target]}", "shown")
        tool, script = measurements.tool(target), measurements.typical(target=target, peer="python")
        if tool and script:
            _compare(row, tool, script, None)
        yield row


def _compare(row, tool, peer, least, times="seconds_of_all"):
    """Of each round the ratio: rounds alternate, and a machine is faster in one than in another."""
    ratios = [
        (theirs / peer["observations"]) / (ours / tool["observations"])
        for ours, theirs in zip(tool[times], peer[times])
    ]
    ratio = statistics.median(ratios)
    ours, theirs = (run["observations"] / statistics.median_low(run[times]) for run in (tool, peer))
    row.figure = f"{ratio:.2f}x{_spread(ratios)} ({ours:,.0f}/s)"
    row.peer = f"{peer['name']}: {theirs:,.0f}/s"
    row.met = ratio >= least if least else None


def _spread(figures):
    """The least and the most of several rounds."""
    if len(figures) < 2:
        return ", one round"
    return f", {min(figures):.2f} to {max(figures):.2f} in {len(figures)} rounds"


def server_time(measurements):
    """What the server's processors do for it: while rows arrive, and until all merges have ended."""
    for target, most, most_until_quiet in (("full", 32, 55), ("plain", 16, None)):
        tool = measurements.tool(target)
        joins = [measurements.typical(target=target, peer=algorithm) for algorithm in JOINS]
        joins = [join for join in joins if join and "per_second" in join]
        for what, name, goal in (
            ("while it runs", "server_processor_seconds_of_all", most),
            ("until it is quiet", "server_processor_seconds_until_quiet_of_all", most_until_quiet),
        ):
            row = Row(
                f"the server's CPU per million, {TARGET_NAMES[target]}, {what}",
                f"{goal} s or less, and no more than the join's" if goal else "shown",
            )
            if tool:
                seconds = statistics.median(tool[name]) / tool["observations"] * 1e6
                row.figure = f"{seconds:.1f} s"
                row.met = seconds <= goal if goal else None
            if tool and joins:
                figures = {
                    join["name"]: statistics.median(join[name]) / join["observations"] * 1e6
                    for join in joins
                }
                row.peer = ", ".join(f"{peer}: {figure:.1f} s" for peer, figure in figures.items())
                row.met = row.met and seconds <= min(figures.values()) if goal else None
            yield row


def processor_time(measurements):
    """The tool's own processor time while it streams; 2 % of the rows have no trace."""
    for compression, most in (("none", 2.2), ("lz4", 4.5)):
        name = "uncompressed" if compression == "none" else "LZ4"
        row = Row(f"the tool's own CPU per million observations, {name}", f"{most} s or less")
        runs = measurements.select(
            "throughput", payload="typical", peer="tool", compression=compression
        )
        if runs:
            worst = max(runs, key=_stream_seconds_per_million)
            seconds = _stream_seconds_per_million(worst)
            row.figure = f"{seconds:.2f} s (into {TARGET_NAMES[worst['target']]})"
            row.peer = _by_target(runs, _stream_seconds_per_million)
            load = measurements.first("traces")
            if load:
                seconds_load = (
                    load["processor_seconds_load"] / load["report"]["traces_loaded"] * 1e6
                )
                row.peer += f"; besides, loading: {seconds_load:.2f} s per million traces"
            row.met = seconds <= most
        yield row


def _stream_seconds_per_million(measurement):
    return measurement["processor_seconds_stream"] / measurement["observations"] * 1e6


def _by_target(runs, figure):
    return ", ".join(f"{run['target']} {figure(run):.2f} s" for run in runs)


def null_target(measurements):
    """What the client alone can do."""
    row = Row("Null target, while streaming", "at least 250,000 obs/s")
    tool = measurements.tool("null")
    if tool:
        per_second = tool["report"]["observations_per_second"]
        limit = measurements.typical(target="null", peer="limit")
        cores = (
            tool["processor_seconds"] / tool["seconds"],
            tool["server_processor_seconds"] / tool["seconds"],
        )
        row.figure = f"{per_second:,.0f}/s"
        row.peer = f"the tool kept {cores[0]:.2f} cores busy, the server {cores[1]:.2f}"
        if limit:
            row.peer += f"; the limit: {limit['per_second']:,.0f}/s"
        row.met = per_second >= 250_000
    yield row


def traces_loaded(measurements):
    """Loading alone."""
    row = Row("traces loaded, light attributes", "at least 500,000/s")
    run = measurements.first("traces")
    if run:
        seconds = run["report"]["seconds"]["load"]
        per_second = run["report"]["traces_loaded"] / seconds
        row.figure = f"{per_second:,.0f}/s"
        row.peer = (
            f"the same queries to /dev/null take {run['replay_seconds'] / seconds:.0%} of that time, "
            f"{run['replay_seconds_no_transfer'] / seconds:.0%} with FORMAT Null; "
            f"server {run['server_processor_seconds']:.1f} s CPU, tool {run['processor_seconds']:.1f} s"
        )
        row.met = per_second >= 500_000
    yield row


def many_traces(measurements):
    """100 million traces in little memory."""
    runs = measurements.select("large")
    if not runs:
        yield Row("100M traces, then 20M observations, in 1 GiB with page cache", "completes")
        yield Row("… peak RSS", "200 MiB or less")
        yield Row("… disk per trace", "at most 60 B")
        yield Row("… throughput against few traces", "at least 0.6x, into events_full 0.95x")
        yield Row("… the tool's own CPU per million observations", "6 s or less")
        return
    for target in dict.fromkeys(run["target"] for run in runs):
        few, many = (run for run in runs if run["target"] == target)
        what = (
            f"{many['traces']:,} traces, then {many['observations']:,} observations into {TARGET_NAMES[target]}, "
            f"in {many['group_limit_bytes'] / MEBIBYTE:,.0f} MiB with page cache"
        )
        if many.get("error_code"):
            yield Row(what, "completes", f"failed, exit code {many['error_code']}", "", False)
            continue
        yield Row(what, "completes", f"{many['seconds']:,.0f} s", "", True)
        peak = many["peak_bytes"]
        yield Row("… peak RSS", "200 MiB or less", _mebibytes(peak), "", peak <= 200 * MEBIBYTE)
        disk = many["report"]["store_bytes"] / many["report"]["traces_loaded"]
        yield Row("… disk per trace", "at most 60 B", f"{disk:.1f} B", "", disk <= 60)
        least = 0.95 if target == "full" else 0.6
        row = Row("… throughput against few traces", f"at least {least}x")
        if not few.get("error_code"):
            speeds = [run["report"]["observations_per_second"] for run in (many, few)]
            row.figure = f"{speeds[0] / speeds[1]:.2f}x ({speeds[0]:,.0f}/s)"
            row.peer = f"{few['traces']:,} traces: {speeds[1]:,.0f}/s"
            row.met = speeds[0] >= least * speeds[1]
        yield row
        seconds = _stream_seconds_per_million(many)
        row = Row("… the tool's own CPU per million observations", "6 s or less")
        row.figure, row.met = f"{seconds:.2f} s", seconds <= 6
        yield row


def tool_memory(parts):
    """The tool's runs into the Null target: those of the part memory, then those of the part large
    with more traces."""
    measurements = Measurements(parts)
    runs = measurements.select("memory", peer="tool")
    most = max((run["traces"] for run in runs), default=0)
    large = measurements.select("large", target="null")
    return runs + [run for run in large if run["traces"] > most and not run.get("error_code")]


def flat_memory(measurements):
    """Peak memory against traces, and against payload."""
    runs = tool_memory(measurements.parts)
    by_traces = {run["traces"]: run["peak_bytes"] for run in runs if run["payload"] == "typical"}
    fewest = min(by_traces, default=None)
    by_payload = {
        run["payload"]: run["peak_bytes"]
        for run in measurements.select("memory", peer="tool", traces=fewest)
    }
    for what, peaks in (
        (
            "peak RSS by number of traces",
            {f"{traces:,}": by_traces[traces] for traces in sorted(by_traces)},
        ),
        ("peak RSS by payload", by_payload),
    ):
        row = Row(what, "within 15%, and 200 MiB")
        if len(peaks) > 1:
            spread = max(peaks.values()) / min(peaks.values()) - 1
            row.figure = f"{spread:.0%} apart, at most {_mebibytes(max(peaks.values()))}"
            row.peer = ", ".join(f"{name}: {_mebibytes(peak)}" for name, peak in peaks.items())
            row.met = spread <= 0.15 and max(peaks.values()) <= 200 * MEBIBYTE
        yield row


def small_server(measurements):
    """A server with 2 GiB."""
    row = Row(
        "a server limited to 2 GiB, wide payload",
        "completes, at least 4,500/s, at most 3 % of inserts refused",
    )
    runs = {run["peer"]: run for run in measurements.select("small-server")}
    if runs:
        tool = runs["tool"]
        is_complete = not tool.get("error_code") and tool["distinct_events"] == tool["observations"]
        row.figure = (
            f"completes, {tool['per_second']:,.0f}/s, {tool['inserts_refused']} of {tool['inserts']} "
            f"inserts refused, server {tool['server_processor_seconds'] / tool['observations'] * 1e6:.0f} s "
            "CPU per million"
            if is_complete
            else "does not complete"
        )
        row.peer = ", ".join(f"{algorithm}: {_ending(runs[algorithm])}" for algorithm in JOINS)
        row.met = (
            is_complete
            and tool["per_second"] >= 4500
            and tool["inserts_refused"] <= 0.03 * tool["inserts"]
        )
    yield row


def _ending(run):
    if run.get("error_code"):
        return f"dies with {run['error_code']} after {run['seconds']:.0f} s"
    return f"completes, {run['per_second']:,.0f}/s, {_mebibytes(run['peak_bytes'])}"


def server_engine(measurements):
    """The server's own engine against two joins at once: its peer with the same work."""
    for target, least in (("full", 1.0), ("plain", 0.9)):
        name = f"--engine clickhouse, {TARGET_NAMES[target]}"
        tool = measurements.typical(target=target, peer="tool-clickhouse")
        join = measurements.typical(target=target, peer="hash-2")
        throughput = Row(f"{name}, against two joins at once", f"at least {least}x")
        merged = Row(f"{name}, against two joins at once, until merges have ended", "shown")
        seconds = Row(f"{name}, the server's CPU per million", "at most 1.1x of the two joins'")
        all_seconds = Row(f"{name}, the server's CPU per million, until it is quiet", "shown")
        rows = Row(f"{name}, rows read", "at most 1.4x of the two joins'")
        if tool and join:
            _compare(throughput, tool, join, least)
            # Larger months: the joins leave their merges for later, a longer run does its own meanwhile.
            if "seconds_until_quiet_of_all" in tool and "seconds_until_quiet_of_all" in join:
                _compare(merged, tool, join, None, "seconds_until_quiet_of_all")
            ratio = _server_seconds(seconds, tool, join, "server_processor_seconds_of_all")
            seconds.met = ratio <= 1.1
            _server_seconds(all_seconds, tool, join, "server_processor_seconds_until_quiet_of_all")
            ratio = tool["rows_read_all"] / join["rows_read"]
            rows.figure = f"{ratio:.2f}x"
            of_bytes = tool["bytes_read_all"] / join["bytes_read"]
            rows.peer = (
                f"{tool['rows_read_all']:,} and {join['rows_read']:,}, most of them keys alone: "
                f"{of_bytes:.2f}x of the bytes"
            )
            rows.met = ratio <= 1.4
        yield from (throughput, merged, seconds, all_seconds, rows)
    small = Row("--engine clickhouse, a server limited to 2 GiB, wide payload", "completes")
    run = measurements.first("small-server", peer="tool-clickhouse")
    if run:
        small.met = not run.get("error_code") and run["distinct_events"] == run["observations"]
        small.figure = f"completes, {run['per_second']:,.0f}/s" if small.met else _ending(run)
    yield small


def _server_seconds(row, tool, peer, times):
    """Shows both figures for a million observations, and gives their ratio."""
    ours, theirs = (
        statistics.median(run[times]) / run["observations"] * 1e6 for run in (tool, peer)
    )
    row.figure, row.peer = f"{ours:.1f} s", f"{theirs:.1f} s: {ours / theirs:.2f}x"
    return ours / theirs


def rows_read(measurements):
    """How much of the source the tool's queries read."""
    row = Row("source rows read (read_rows over all queries)", "at most 1.3x of the partition")
    run = measurements.tool("null") or measurements.tool("plain") or measurements.tool("full")
    if run:
        observations = run["rows_read"] / run["partition_rows"]
        everything = run["rows_read_all"] / run["partition_rows_all"]
        row.figure = f"{observations:.2f}x"
        row.peer = (
            f"{run['rows_read']:,} of {run['partition_rows']:,} rows in {run['partition_parts']} parts; "
            f"with traces {everything:.2f}x"
        )
        row.met = max(observations, everything) <= 1.3
    yield row


def network(measurements):
    """What a slower network decides."""
    runs = measurements.select("network")
    if not runs:
        yield Row("through a link of 1 Gbit/s and 10 ms", "shown")
    for target in dict.fromkeys(run["target"] for run in runs):
        row = Row(f"through a link of 1 Gbit/s and 10 ms, {TARGET_NAMES[target]}", "shown")
        figures = []
        for run in measurements.select("network", target=target):
            moved = (run["bytes_to_server"] + run["bytes_from_server"]) / run["observations"]
            name = "uncompressed" if run["compression"] == "none" else "LZ4"
            figures.append(f"{name}: {run['per_second']:,.0f}/s, {moved:,.0f} B each")
        row.figure = "; ".join(figures)
        direct = [measurements.tool(target, compression) for compression in ("none", "lz4")]
        if all(direct):
            row.peer = "without the link: " + ", ".join(
                f"{run['per_second']:,.0f}/s" for run in direct
            )
        yield row


def full_month(measurements):
    """What it costs to write each event once."""
    if not measurements.select("full-month"):
        yield Row("reading the keys of a month that is full", "at most 3% of a run")
        yield Row("finding the versions of observations", "at most 5% of a run")
    for empty in measurements.select("full-month", state="empty"):
        shape = empty["shape"]
        for state, rows in (("own", "a backfill's"), ("live", "live")):
            run = measurements.first("full-month", state=state, shape=shape)
            row = Row(f"reading the keys of {rows} rows, {shape}", "at most 3% of a run")
            _cost(row, run["queries"]["keys"], empty, run["events_before"])
            row.met = run["queries"]["keys"]["seconds"] <= 0.03 * empty["seconds"]
            row.peer += f"; the run itself: {run['seconds']:.1f} s"
            yield row
        row = Row(f"finding the versions of observations, {shape}", "at most 5% of a run")
        _cost(row, empty["queries"]["versions"], empty, empty["partition_rows"])
        row.met = empty["queries"]["versions"]["seconds"] <= 0.05 * empty["seconds"]
        yield row


def other_client(measurements):
    """What another client notices, and what it costs to be considerate."""
    p95 = Row("another client's p95 beside a run, against without one", "at most 1.3x")
    cost = Row("the time of a run that gives way, while there is nobody else", "at most 1.02x")
    rounds = measurements.parts.get("guest", {}).get("rounds", [])
    if rounds:
        ratios = {
            way: [one[way]["p95"] / one["alone"]["p95"] for one in rounds]
            for way in ("throttled", "unthrottled")
        }
        middle = {way: statistics.median(of_way) for way, of_way in ratios.items()}
        alone = statistics.median(one["alone"]["p95"] for one in rounds)
        p95.figure = f"{middle['throttled']:.2f}x{_spread(ratios['throttled'])}"
        p95.peer = (
            f"without a run: {alone * 1000:.0f} ms; with --no-throttle: "
            f"{middle['unthrottled']:.2f}x{_spread(ratios['unthrottled'])}"
        )
        p95.met = middle["throttled"] <= 1.3
        costs = [
            one["throttled_idle"]["seconds"] / one["unthrottled_idle"]["seconds"] for one in rounds
        ]
        cost.figure = f"{statistics.median(costs):.2f}x{_spread(costs)}"
        cost.peer = "with --no-throttle"
        cost.met = statistics.median(costs) <= 1.02
    yield p95
    yield cost


def larger_machines(measurements):
    """What docs/scale.md is computed from, besides."""
    merge = Row("the server's CPU per million, one merge of events_full and events_core", "shown")
    again = Row("the server's CPU per million rows that each of several processes reads", "shown")
    run = measurements.first("scale")
    if run:
        merged = [table["processor_seconds"] / table["rows"] for table in run["merges"].values()]
        merge.figure = f"{sum(merged) * 1e6:.1f} s"
        merge.peer = ", ".join(
            f"{table}: {stored['bytes_on_disk'] / stored['rows']:.0f} B a row"
            for table, stored in run["stored"].items()
        )
        again.figure = ", ".join(
            f"{purpose}: {query['processor_seconds'] / query['rows'] * 1e6:.2f} s"
            for purpose, query in run["queries"].items()
        )
        versions = run["processor_seconds_versions"] / run["queries"]["versions"]["rows"] * 1e6
        again.peer = f"the tool's own for versions: {versions:.2f} s"
    yield merge
    yield again


def _cost(row, query, empty, rows):
    row.figure = f"{query['seconds'] / empty['seconds']:.1%} ({query['seconds']:.2f} s)"
    row.peer = (
        f"a run into the empty month: {empty['seconds']:.1f} s, "
        f"{empty['report']['segments_total']} segments; "
        f"{query['rows']:,} rows read of {rows:,}"
    )


def _mebibytes(number):
    return f"{number / MEBIBYTE:,.0f} MiB"


def as_table(table):
    """The rows as a table in Markdown."""
    words = {True: "yes", False: "**no**", None: ""}
    lines = [["what", "goal", "figure", "peer", "met?"]]
    lines += [[row.what, row.goal, row.figure, row.peer, words[row.met]] for row in table]
    widths = [max(len(line[column]) for line in lines) for column in range(5)]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths)) + " |"
        for line in lines
    )
