"""Draws peak memory against the number of traces.

    python chart.py RESULTS.json CHART.svg

Runs in the environment that has matplotlib.
"""

import json
import os
import sys

import matplotlib

matplotlib.use("Agg")
# Texts stay texts, and the same figures give the same file.
matplotlib.rcParams["svg.fonttype"] = "none"
matplotlib.rcParams["svg.hashsalt"] = "events-backfill"

from matplotlib import pyplot

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from benchmark.goals import tool_memory
from benchmark.scheme import follow_scheme

GIBIBYTE = 1024**3

# Peer, label, colour, marker.
LINES = [
    ("python", "Python script: its own memory", "#c0562f", "s"),
    ("hash", "join in ClickHouse: the server's memory for the query", "#6a51a3", "^"),
    ("tool", "events-backfill: its own memory", "#1a7f5a", "o"),
]


def points(results, peer):
    """Pairs of traces and measurement for one line."""
    parts = results["parts"]
    if peer == "tool":
        measurements = tool_memory(parts)
    else:
        measurements = parts.get("memory", {}).get("measurements", [])
    chosen = {
        m["traces"]: m
        for m in measurements
        if m["peer"] == peer and m["payload"] == "typical" and m.get("peak_bytes")
    }
    return sorted(chosen.items())


def short(number):
    """1000000 as 1M."""
    for unit, name in ((1_000_000, "M"), (1_000, "k")):
        if number >= unit:
            return f"{number / unit:g}{name}"
    return f"{number:g}"


def draw(results, path):
    """Draws all lines into a file."""
    figure, axes = pyplot.subplots(figsize=(8, 4.5))
    ticks = set()
    for peer, label, colour, marker in LINES:
        line = points(results, peer)
        if not line:
            continue
        numbers = [traces for traces, _ in line]
        ticks.update(numbers)
        axes.plot(
            numbers,
            [m["peak_bytes"] / GIBIBYTE for _, m in line],
            color=colour,
            label=label,
            zorder=1,
        )
        for traces, measurement in line:
            is_real = not measurement.get("estimated") and not measurement.get("error_code")
            height = measurement["peak_bytes"] / GIBIBYTE
            face = colour if is_real else "white"
            axes.plot(
                [traces], [height], marker, markerfacecolor=face, markeredgecolor=colour, zorder=2
            )
            _annotate(axes, measurement, traces, height, colour)
    axes.axhline(
        0.5, color="grey", linewidth=0.8, linestyle=":", label="--memory-limit of events-backfill"
    )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks(sorted(ticks), [short(tick) for tick in sorted(ticks)])
    low, high = axes.get_ylim()
    heights = [4.0**power for power in range(-3, 6) if low <= 4.0**power <= high]
    axes.set_yticks(heights, [f"{h:g} GiB" if h >= 1 else f"{h * 1024:g} MiB" for h in heights])
    axes.minorticks_off()
    axes.set_ylim(low, high * 2)
    axes.set_xlabel("traces of the month")
    axes.set_ylabel("peak memory")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=9)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None} if path.endswith(".svg") else None)
    if path.endswith(".svg"):
        follow_scheme(path)


def _annotate(axes, measurement, traces, height, colour):
    """Says of a point that it was not reached."""
    if measurement.get("estimated"):
        text = "would need this"
    elif measurement.get("error_code"):
        text = f"died ({measurement['error_code']})"
    else:
        return
    axes.annotate(
        text,
        (traces, height),
        (-6, 6),
        textcoords="offset points",
        ha="right",
        color=colour,
        fontsize=8,
    )


def main():
    """Reads the results and draws."""
    results_file, chart_file = sys.argv[1:]
    with open(results_file, encoding="utf-8") as file:
        results = json.load(file)
    draw(results, chart_file)


if __name__ == "__main__":
    main()
