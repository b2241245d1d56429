"""What can be set, each under its name in the environment."""

import os
import sys

# Name without the prefix BENCH_, default, meaning.
SETTINGS = [
    (
        "PARTS",
        "throughput traces memory small-server network",
        "parts to run; also: large full-month guest scale",
    ),
    ("OBSERVATIONS", "300000", "observations of the month"),
    ("PAYLOADS", "typical", "payloads that the peers are compared with: narrow typical wide"),
    ("TARGETS", "full plain null", "tables that are written to"),
    (
        "PEERS",
        "hash full_sorting_merge hash-2 limit limit-2 python",
        "peers of events-backfill; -2: two statements at once",
    ),
    ("REPEATS", "3", "rounds, each with all of them; medians count"),
    ("TRACES", "1000000", "traces of the part traces"),
    ("MEMORY_TRACES", "100000 300000 1000000", "numbers of traces of the part memory"),
    ("MEMORY_OBSERVATIONS", "200000", "observations of the part memory"),
    ("SMALL_SERVER_OBSERVATIONS", "50000", "observations of the part small-server, wide"),
    ("SMALL_SERVER_TRACES", "200000", "traces of the part small-server"),
    ("SMALL_SERVER_MEBIBYTES", "2048", "memory of the small server"),
    ("NETWORK_TARGETS", "plain null", "tables that are written to through the slow link"),
    ("NETWORK_MEGABITS", "1000", "megabits per second of the link, each way"),
    ("NETWORK_MILLISECONDS", "10", "time on the link, each way"),
    ("LARGE_OBSERVATIONS", "20000000", "observations of the part large"),
    ("LARGE_TRACES", "100000000", "traces of the part large"),
    ("LARGE_FEW_TRACES", "1000000", "traces that it is compared with"),
    ("LARGE_MEBIBYTES", "1024", "memory of the tool there, page cache included"),
    ("LARGE_TARGETS", "null", "tables that are written to there"),
    ("EARLIER_TRACES", "3000000", "traces of another month in the part scale"),
    ("PROGRAMS", "", "directory of the programs; else target/release"),
    ("RESULTS", "", "directory of the results; else target/bench"),
    (
        "DATA",
        "",
        "directory in which ClickHouse keeps its data for the next run; else it is removed",
    ),
]


class Settings:
    """The settings of this run: `settings.text("PARTS")`, and likewise."""

    def __init__(self, environment=os.environ):
        self.values = {
            name: environment.get(f"BENCH_{name}") or default for name, default, _ in SETTINGS
        }
        known = {f"BENCH_{name}" for name, _, _ in SETTINGS}
        unknown = [name for name in environment if name.startswith("BENCH_") and name not in known]
        if unknown:
            sys.exit(f"There is no setting {', '.join(unknown)}. 'bench.py --help' lists them.")

    def text(self, name):
        """A text."""
        return self.values[name]

    def words(self, name):
        """A list of words."""
        return self.values[name].split()

    def number(self, name):
        """A number."""
        return self.numbers(name)[0]

    def numbers(self, name):
        """A list of numbers, which may have underscores between their digits."""
        try:
            return [int(word) for word in self.words(name)]
        except ValueError:
            sys.exit(f"BENCH_{name} must be a number, not '{self.values[name]}'.")


def describe():
    """All settings, for people."""
    return "\n".join(
        f"  BENCH_{name:<26} {meaning} [default: {default or 'none'}]"
        for name, default, meaning in SETTINGS
    )
