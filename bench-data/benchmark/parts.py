"""The parts of the benchmark. Each gives its measurements as a dictionary."""

import json
import os
import subprocess
import sys
import time
from contextlib import contextmanager

from . import datasets, full_month, guest, repeated, runs
from .datasets import Dataset
from .processes import MemoryGroup, available_memory

MEBIBYTE = 1024 * 1024

# In the part throughput a trace has so many observations on average.
OBSERVATIONS_PER_TRACE = 6


def throughput(bench, settings):
    """All peers, on the same data and the same server, in turn."""
    measurements = []
    for payload in settings.words("PAYLOADS"):
        dataset = main_dataset(settings, payload)
        datasets.prepare(bench.server, dataset)
        runs.learn_settings(bench, dataset)
        for target in settings.words("TARGETS"):
            rounds = [
                _round(bench, settings, dataset, target) for _ in range(settings.number("REPEATS"))
            ]
            measurements += [runs.median(list(same)) for same in zip(*rounds)]
    return {"measurements": measurements, "settings_of_peers": bench.settings}


def main_dataset(settings, payload="typical"):
    """The month of the parts throughput and network."""
    observations = settings.number("OBSERVATIONS")
    return Dataset(payload, observations, observations // OBSERVATIONS_PER_TRACE)


def _round(bench, settings, dataset, target):
    """Each peer once, then the tool. They must have written the same events."""
    work = [_peer(bench, dataset, target, name) for name in settings.words("PEERS")]
    work += [
        lambda: runs.run_tool(bench, dataset, target, "none"),
        lambda: runs.run_tool(bench, dataset, target, "lz4"),
        lambda: runs.run_tool(bench, dataset, target, engine="clickhouse"),
    ]
    measurements, fingerprints = [], {}
    for run in work:
        datasets.empty_targets(bench.server, dataset)
        measurement = run()
        if target != "null":
            measurement["result"] = datasets.fingerprint(bench.server, dataset, target)
            fingerprints[measurement["name"]] = measurement["result"]
        measurements.append(measurement)
    datasets.empty_targets(bench.server, dataset)
    _require_equal(fingerprints)
    return measurements


def _peer(bench, dataset, target, name):
    """What runs a peer: `python`, or a statement, whose name may end in how many run at once."""
    if name == "python":
        return lambda: runs.run_python(bench, dataset, target)
    statement, _, at_once = name.partition("-")
    return lambda: runs.run_statement(bench, dataset, target, statement, int(at_once or 1))


def _require_equal(fingerprints):
    """All peers must have done the same work; the one without a join writes as many events."""
    counts = {result["events"] for result in fingerprints.values()}
    hashes = {result["hash"] for name, result in fingerprints.items() if "no join" not in name}
    if len(counts) > 1 or len(hashes) > 1:
        sys.exit(f"The peers did not write the same events: {json.dumps(fingerprints, indent=4)}")


def traces(bench, settings):
    """Loading traces: hardly any observations. Then the tool's queries alone, to /dev/null."""
    dataset = Dataset("narrow", 1000, settings.number("TRACES"))
    datasets.prepare(bench.server, dataset)
    began = time.time()
    measurement = runs.run_tool(bench, dataset, "null")
    measurement["bytes_of_traces"] = runs.result_bytes_of_traces(bench, dataset, began)
    measurement["replay_seconds"] = runs.replay_trace_queries(bench, dataset, began, "Native")
    measurement["replay_seconds_no_transfer"] = runs.replay_trace_queries(
        bench, dataset, began, "Null"
    )
    return {"measurements": [measurement]}


def memory(bench, settings):
    """Peak memory against the number of traces, and against the payload."""
    observations = settings.number("MEMORY_OBSERVATIONS")
    measurements = []
    previous_python = None
    for number in settings.numbers("MEMORY_TRACES"):
        dataset = Dataset("typical", observations, number)
        datasets.prepare(bench.server, dataset)
        if bench.settings is None:
            runs.learn_settings(bench, dataset)
        measurements.append(runs.run_tool(bench, dataset, "null"))
        measurements.append(runs.run_statement(bench, dataset, "null", "hash"))
        previous_python = _python_if_it_fits(bench, dataset, previous_python)
        measurements.append(previous_python)
    for payload in ("narrow", "wide"):
        dataset = Dataset(payload, observations, settings.numbers("MEMORY_TRACES")[0])
        datasets.prepare(bench.server, dataset)
        measurements.append(runs.run_tool(bench, dataset, "null"))
    return {"measurements": measurements}


def _python_if_it_fits(bench, dataset, previous):
    """The Python script, unless so many traces would not fit into memory."""
    estimate = previous["peak_bytes"] * dataset.traces / previous["traces"] if previous else 0
    if estimate < available_memory() * 0.6:
        return runs.run_python(bench, dataset, "null")
    print(f"    Python script: not run, it would need some {estimate / 1e9:.0f} GB")
    return {
        "name": "Python script",
        "peer": "python",
        "payload": dataset.payload,
        "target": "null",
        "traces": dataset.traces,
        "peak_bytes": estimate,
        "estimated": True,
    }


def small_server(bench, settings):
    """Wide payload on a server with little memory: the joins, then the tool."""
    dataset = Dataset(
        "wide", settings.number("SMALL_SERVER_OBSERVATIONS"), settings.number("SMALL_SERVER_TRACES")
    )
    datasets.prepare(bench.server, dataset)
    if bench.settings is None:
        runs.learn_settings(bench, dataset)
    measurements = []
    try:
        bench.server.restart(settings.number("SMALL_SERVER_MEBIBYTES") * MEBIBYTE)
        for algorithm in ("hash", "full_sorting_merge"):
            datasets.empty_targets(bench.server, dataset)
            measurements.append(runs.run_statement(bench, dataset, "full", algorithm))
        for engine in ("embedded", "clickhouse"):
            datasets.empty_targets(bench.server, dataset)
            measurements.append(
                runs.run_tool(bench, dataset, "full", may_fail=True, engine=engine)
            )
            distinct = bench.server.query(
                "SELECT uniqExact(span_id) FROM events_full", dataset.database
            )
            measurements[-1]["distinct_events"] = int(distinct)
        datasets.empty_targets(bench.server, dataset)
    finally:
        bench.server.restart()
    return {"measurements": measurements}


def network(bench, settings):
    """The same run through a slow link, with and without LZ4."""
    dataset = main_dataset(settings)
    datasets.prepare(bench.server, dataset)
    measurements = []
    for target in settings.words("NETWORK_TARGETS"):
        for compression in ("none", "lz4"):
            datasets.empty_targets(bench.server, dataset)
            with _link(bench, settings) as link:
                measurement = runs.run_tool(bench, dataset, target, compression, url=link["url"])
            measurements.append(measurement | link)
    datasets.empty_targets(bench.server, dataset)
    return {"measurements": measurements}


@contextmanager
def _link(bench, settings):
    """A slow link to the server. The dictionary it gives has the bytes it carried in the end."""
    command = [
        sys.executable,
        os.path.join(os.path.dirname(__file__), "link.py"),
        str(bench.server.port),
    ]
    command += [settings.text("NETWORK_MEGABITS"), settings.text("NETWORK_MILLISECONDS")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, text=True, **pipes) as process:
        link = {"url": f"http://127.0.0.1:{int(process.stdout.readline())}"}
        try:
            yield link
        finally:
            output, _ = process.communicate("")
            link |= json.loads(output)


def large(bench, settings):
    """Many traces in little memory, page cache included; the same observations with few traces."""
    observations = settings.number("LARGE_OBSERVATIONS")
    measurements = []
    for number in (settings.number("LARGE_FEW_TRACES"), settings.number("LARGE_TRACES")):
        dataset = Dataset("typical", observations, number)
        datasets.prepare(bench.server, dataset)
        for target in settings.words("LARGE_TARGETS"):
            datasets.empty_targets(bench.server, dataset)
            _warm_up(bench, dataset)
            measurements.append(_in_memory_group(bench, settings, dataset, target))
        datasets.empty_targets(bench.server, dataset)
    return {"measurements": measurements}


def _warm_up(bench, dataset):
    """Reads all that will be read, so that no run finds more of it in the server's page cache."""
    bench.server.query("SELECT count() FROM traces WHERE NOT ignore(*)", dataset.database)
    bench.server.query("SELECT count() FROM observations WHERE NOT ignore(*)", dataset.database)


def _in_memory_group(bench, settings, dataset, target):
    """The tool inside of a memory group; the server stays outside."""
    limit = settings.number("LARGE_MEBIBYTES") * MEBIBYTE
    try:
        group = MemoryGroup(limit)
    except OSError as error:
        sys.exit(
            f"A memory group cannot be made: {error}. The part large needs root and control groups."
        )
    try:
        measurement = runs.run_tool(bench, dataset, target, memory_group=group, may_fail=True)
        return measurement | {"group_limit_bytes": limit, "group_peak_bytes": group.peak()}
    finally:
        group.remove()


def month_states(bench, settings):
    """Runs into a month that is empty, full of a backfill's rows, and full of live ones."""
    return full_month.measure(bench, settings, main_dataset(settings))


def other_client(bench, settings):
    """What another client of the server notices of a run."""
    return guest.measure(bench, settings, main_dataset(settings))


def scale(bench, settings):
    """What each of several processes does again, what a merge costs, and what events take on disk."""
    return repeated.measure(bench, settings, main_dataset(settings))


PARTS = {
    "throughput": throughput,
    "traces": traces,
    "memory": memory,
    "small-server": small_server,
    "network": network,
    "large": large,
    "full-month": month_states,
    "guest": other_client,
    "scale": scale,
}
