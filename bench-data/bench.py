#!/usr/bin/env python3
"""The benchmark: events-backfill against its peers, on the same data and the same server.

Run it with `make bench`, which builds what it needs. It starts a ClickHouse of its own, generates data
in it, runs the parts that BENCH_PARTS names, and prints the table of goals. It leaves its results in
target/bench: results.json, results.md and memory.svg. All else it makes is in a temporary directory and
gone afterwards, but for the environment with the Python packages, which is kept with the ClickHouse
library in ~/.cache/events-backfill.

The table shows what each part measured last; a part that is not run again keeps its results.
`scale.py --take target/bench/results.json` computes docs/scale.md from them.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time

from benchmark import environment, goals, parts
from benchmark.runs import Bench
from benchmark.server import Server
from benchmark.settings import Settings, describe

RESULTS = environment.results_directory()


def main():
    """Runs the parts and prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=f"settings, from the environment:\n{describe()}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--table", action="store_true", help="print the table of the last results again"
    )
    parser.add_argument("--chart", metavar="FILE", help="draw the chart of the last results again")
    arguments = parser.parse_args()
    if arguments.chart:
        return draw_again(arguments.chart)
    if arguments.table:
        return show(read_results())
    settings = Settings()
    unknown = [name for name in settings.words("PARTS") if name not in parts.PARTS]
    if unknown:
        sys.exit(f"There is no part {', '.join(unknown)}; there are {', '.join(parts.PARTS)}.")
    # Whoever ends this program wants the server to end, and the files to go, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    os.makedirs(RESULTS, exist_ok=True)
    workplace = tempfile.mkdtemp(prefix="work-", dir=RESULTS)
    try:
        run_parts(settings, workplace)
    finally:
        shutil.rmtree(workplace, ignore_errors=True)
    return show(read_results())


def run_parts(settings, workplace):
    """Starts a server, and runs one part after the other."""
    python = environment.python_with_packages() if needs_packages(settings) else None
    data = os.path.abspath(settings.text("DATA") or os.path.join(workplace, "clickhouse"))
    launcher = environment.program("examples/embedded_clickhouse")
    server = Server(launcher, workplace, data, environment.clickhouse_library())
    bench = Bench(server, environment.program("events-backfill"), python, workplace, os.cpu_count())
    try:
        server.start()
        machine = environment.describe(server, python)
        for name in settings.words("PARTS"):
            print(f"==> {name}: {parts.PARTS[name].__doc__}", flush=True)
            measured = parts.PARTS[name](bench, settings)
            keep(name, measured | {"machine": machine, "settings": settings.values})
    except KeyboardInterrupt:
        sys.exit(130)
    finally:
        server.stop()
    if "memory" not in settings.words("PARTS"):
        return
    chart = [python, os.path.join(os.path.dirname(parts.__file__), "chart.py")]
    subprocess.run([*chart, results_file(), os.path.join(RESULTS, "memory.svg")], check=True)


def draw_again(path):
    """Draws the chart of results that are there, or says that there are none."""
    if "memory" not in read_results()["parts"]:
        print(f"{path} stays as it is: there are no results of the part memory in {RESULTS}.")
        return
    chart = os.path.join(os.path.dirname(parts.__file__), "chart.py")
    subprocess.run([environment.python_with_packages(), chart, results_file(), path], check=True)


def needs_packages(settings):
    """Whether the Python script runs, or the chart is drawn."""
    parts_to_run = settings.words("PARTS")
    return "memory" in parts_to_run or (
        "throughput" in parts_to_run and "python" in settings.words("PEERS")
    )


def results_file():
    """Where the results are."""
    return os.path.join(RESULTS, "results.json")


def read_results():
    """The results so far."""
    try:
        with open(results_file(), encoding="utf-8") as file:
            return json.load(file)
    except FileNotFoundError:
        return {"parts": {}}


def keep(name, measured):
    """Adds the results of a part, and draws the conclusions again."""
    results = read_results()
    measured["measured_at"] = time.strftime("%Y-%m-%d %H:%M:%S %z")
    measured["command"] = command(measured["settings"])
    results["parts"][name] = measured
    results["goals"] = goals.as_dictionaries(goals.rows(results["parts"]))
    with open(results_file(), "w", encoding="utf-8") as file:
        json.dump(results, file, indent=1)
        file.write("\n")


def command(values):
    """The command with which the same is measured again."""
    given = [
        f'BENCH_{name}="{value}"'
        for name, value in values.items()
        if value != Settings({}).values[name]
    ]
    return " ".join(["make bench", *given])


def show(results):
    """Prints the table and where it comes from, and writes it to a file."""
    text = "\n".join([goals.as_table(goals.rows(results["parts"])), "", *origins(results)])
    print("\n" + text)
    with open(os.path.join(RESULTS, "results.md"), "w", encoding="utf-8") as file:
        file.write(text + "\n")


def origins(results):
    """On what, when and how the parts were measured, in as few lines as possible."""
    parts_of = {}
    for name, part in results["parts"].items():
        machine = part["machine"]
        described = (
            f"{machine['cores']} cores of {machine['processor']}, "
            f"{machine['memory_bytes'] / 2**30:.0f} GiB, {machine['system']}, "
            f"ClickHouse {machine['clickhouse']}, "
            f"{machine['events_backfill']} (commit {machine['commit']}), {machine['rustc']}, "
            f"Python {machine['python']}, clickhouse-connect {machine['clickhouse_connect']}"
        )
        origin = described, part["command"]
        parts_of.setdefault(origin, []).append(f"{name} (until {part['measured_at']})")
    for (machine, made_with), names in parts_of.items():
        yield f"Measured: {', '.join(names)}"
        yield f"On: {machine}"
        yield f"With: {made_with}"
        yield ""


if __name__ == "__main__":
    main()
