"""What another client of the server notices of a run, and what it costs to be considerate."""

import statistics
import threading
import time

from . import datasets, runs

# What a dashboard asks: three days, by hour and model.
QUERY = """
SELECT toStartOfHour(start_time) AS hour, provided_model_name, count(),
    sum(usage_details['total']), quantile(0.95)(dateDiff('millisecond', start_time, end_time))
FROM observations
WHERE start_time >= '2024-06-10' AND start_time < '2024-06-13'
GROUP BY hour, provided_model_name
"""

# Between an answer and the next question.
THINKING_SECONDS = 0.1
# How long it asks while nothing else runs.
ALONE_SECONDS = 15


class OtherClient:
    """Asks again and again, and keeps how long each answer took, until the block ends."""

    def __init__(self, bench, dataset):
        self.bench = bench
        self.dataset = dataset
        self.seconds = []
        self.has_ended = threading.Event()
        self.thread = threading.Thread(target=self._ask)

    def _ask(self):
        while not self.has_ended.is_set():
            started = time.monotonic()
            self.bench.server.query(QUERY, self.dataset.database)
            self.seconds.append(time.monotonic() - started)
            self.has_ended.wait(THINKING_SECONDS)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.has_ended.set()
        self.thread.join()

    def latencies(self):
        """The middle and the 95th percentile, in seconds."""
        percentiles = statistics.quantiles(self.seconds, n=100, method="inclusive")
        return {"p50": percentiles[49], "p95": percentiles[94], "queries": len(self.seconds)}


# How the tool is run, and its name in the results.
WAYS = {"throttled": ("--no-root-spans",), "unthrottled": ("--no-root-spans", "--no-throttle")}


def measure(bench, settings, dataset):
    """Another client's latencies without a run, and beside one as it is by default and without the
    throttle; then what the throttle costs while nobody else is there. In turn."""
    datasets.prepare(bench.server, dataset)
    # The page cache is warm then.
    runs.run_tool(bench, dataset, "null")
    rounds = [_round(bench, dataset) for _ in range(settings.number("REPEATS"))]
    return {"measurements": [], "rounds": rounds}


def _round(bench, dataset):
    result = {}
    with OtherClient(bench, dataset) as other:
        time.sleep(ALONE_SECONDS)
    result["alone"] = other.latencies()
    for way, arguments in WAYS.items():
        datasets.empty_targets(bench.server, dataset)
        with OtherClient(bench, dataset) as other:
            run = runs.run_tool(bench, dataset, "full", arguments=arguments)
        result[way] = other.latencies() | _of_run(run)
    for way, arguments in WAYS.items():
        datasets.empty_targets(bench.server, dataset)
        result[f"{way}_idle"] = _of_run(runs.run_tool(bench, dataset, "full", arguments=arguments))
    datasets.empty_targets(bench.server, dataset)
    for way, measured in result.items():
        print(f"        {way}: {measured}")
    return result


def _of_run(run):
    return {
        "seconds": run["seconds"],
        "throttled_seconds": run["report"]["throttled_seconds"],
    }
