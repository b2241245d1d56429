"""The computation: how many rows a second each part of the way lets through, and which lets the fewest.

A run does one thing after the other: it loads traces, looks at all rows for versions, for root spans and for
traces that moved, and streams. Each of these has bounds; the lowest counts. All processes are taken to
be at the same thing at the same time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

from .figures import Figures

MILLION = 1e6
BYTES_PER_GIGABIT = 1e9 / 8

# What can bound the streaming, as the tables call it.
TOOL = "the program's processors"
SEGMENTS = "segments at once"
SERVER = "the server's processors"
MERGES = "the server's merges"
NETWORK = "the server's network"
SERVER_DISK = "the server's disk"


@dataclass(frozen=True)
class Setup:
    """Machines: the server, and the processes, each on a machine of its own."""

    server_cores: int
    processes: int
    client_cores: int
    gigabits: float = 10
    is_lz4: bool = True


@dataclass(frozen=True)
class Bound:
    """What bounds something, and at how many rows a second."""

    by: str
    per_second: float


def lowest(bounds: list[Bound]) -> Bound:
    """The bound that counts."""
    return min(bounds, key=lambda bound: bound.per_second)


class Model:
    """The figures, and what follows from them for one setup."""

    def __init__(self, figures: Figures, setup: Setup):
        self.figures = figures
        self.setup = setup

    # --- the work -------------------------------------------------------------------------

    @cached_property
    def events(self) -> float:
        """Observations, and a root span for each trace."""
        return self.figures["observations"] + self.figures["traces"]

    @cached_property
    def days(self) -> int:
        """Days of the process that has most of them."""
        return math.ceil(self.figures["days"] / self.setup.processes)

    @cached_property
    def even_processes(self) -> float:
        """As so many processes with the same number of days: the one with most days ends last."""
        return self.figures["days"] / self.days

    @cached_property
    def traces_to_load(self) -> float:
        """Traces of a process: those of its days, and of the day before and after."""
        days = self.days + 2 * self.figures["margin_days"]
        return self.figures["traces"] / self.figures["days"] * days

    # --- a million events -----------------------------------------------------------------

    @cached_property
    def tool_seconds(self) -> float:
        """Seconds of the program's processors for a million events."""
        seconds = self.figures["tool_seconds_many_traces"]
        if self.setup.is_lz4:
            few = self.figures["tool_seconds_few_traces"]
            seconds += self.figures["tool_seconds_few_traces_lz4"] - few
        return seconds

    @cached_property
    def write_seconds(self) -> float:
        """Seconds of the server's processors for a million events, without merges."""
        lz4 = self.figures["server_seconds_lz4"] if self.setup.is_lz4 else 0
        return self.figures["server_seconds_write"] + lz4

    @cached_property
    def part_bytes(self) -> float:
        """Bytes on disk of the part that a segment becomes."""
        return self.figures["segment_rows"] * self.figures["full_bytes_per_event"]

    @cached_property
    def passes_during(self) -> float:
        """How often an event is merged while the run goes on: so often that parts stay few enough."""
        parts = self.events / self.figures["segment_rows"]
        return max(
            0.0, math.log(parts / self.figures["most_parts"], self.figures["parts_of_a_merge"])
        )

    @cached_property
    def passes_in_all(self) -> float:
        """How often an event is merged until its part is as large as ClickHouse makes them."""
        table = self.events * self.figures["full_bytes_per_event"]
        largest = min(self.figures["largest_part_bytes"], table)
        passes = math.log(largest / self.part_bytes, self.figures["parts_of_a_merge"])
        return max(passes, self.passes_during)

    @cached_property
    def merge_seconds(self) -> float:
        """Seconds of the server's processors for the merges of a million events during the run."""
        return self.figures["merge_server_seconds"] * self.passes_during

    @cached_property
    def bytes_sent(self) -> float:
        """Bytes of an event on the network, each way."""
        return self.figures["bytes_per_row_lz4" if self.setup.is_lz4 else "bytes_per_row"]

    @cached_property
    def table_bytes(self) -> float:
        """Bytes of an event on the server's disk, in both tables."""
        return self.figures["full_bytes_per_event"] + self.figures["core_bytes_per_event"]

    @cached_property
    def disk_bytes(self) -> float:
        """Bytes that the server's disk reads and writes for an event during the run."""
        written = self.table_bytes * (1 + self.passes_during)
        read = self.figures["source_bytes_per_row"] + self.table_bytes * self.passes_during
        return written + read

    # --- streaming ------------------------------------------------------------------------

    @cached_property
    def segments_at_once(self) -> float:
        """Segments that all processes have in work."""
        cores = self.setup.client_cores
        concurrency = min(max(cores, 2), self.figures["most_segments_at_once"])
        return self.even_processes * concurrency

    @cached_property
    def merge_cores(self) -> float:
        """Cores that merges can take."""
        return min(self.setup.server_cores, self.figures["merge_threads"])

    @cached_property
    def stream_bounds(self) -> list[Bound]:
        """What each part of the way lets through, in events a second."""
        figures, setup = self.figures, self.setup
        client_cores = self.even_processes * setup.client_cores
        segment_cores = self.segments_at_once * figures["server_cores_per_segment"]
        bounds = [
            Bound(TOOL, client_cores * MILLION / self.tool_seconds),
            Bound(SEGMENTS, segment_cores * MILLION / self.write_seconds),
            Bound(SERVER, setup.server_cores * MILLION / (self.write_seconds + self.merge_seconds)),
            Bound(NETWORK, setup.gigabits * BYTES_PER_GIGABIT / self.bytes_sent),
            Bound(SERVER_DISK, figures["server_disk_bytes_per_second"] / self.disk_bytes),
        ]
        if self.merge_seconds > 0:
            bounds.append(Bound(MERGES, self.merge_cores * MILLION / self.merge_seconds))
        return bounds

    @cached_property
    def stream(self) -> Bound:
        """What bounds the streaming."""
        return lowest(self.stream_bounds)

    @cached_property
    def stream_seconds(self) -> float:
        """Writing all events, root spans included."""
        return self.events / self.stream.per_second

    # --- before it ------------------------------------------------------------------------

    @cached_property
    def load_seconds(self) -> float:
        """Loading traces. That a process loads more on more cores is not known, and not assumed."""
        figures, setup = self.figures, self.setup
        loaded = self.traces_to_load * setup.processes
        per_second = min(
            setup.processes * figures["load_traces_per_second"],
            setup.server_cores * MILLION / figures["load_server_seconds"],
            setup.gigabits * BYTES_PER_GIGABIT / figures["load_bytes_per_trace"],
        )
        return loaded / per_second

    @cached_property
    def own_observations(self) -> float:
        """Observations of the process that has most days."""
        return self.figures["observations"] / self.figures["days"] * self.days

    @cached_property
    def wrong_share(self) -> float:
        """Share of other rows that the Bloom filter of a process's own rows lets through for no reason."""
        figures = self.figures
        wanted = self.own_observations * figures["filter_bits_per_row"]
        bits_per_row = min(wanted, figures["filter_bytes"] * 8) / self.own_observations
        hashes = max(1, round(bits_per_row * math.log(2)))
        return float((1 - math.exp(-hashes / bits_per_row)) ** hashes)

    @cached_property
    def versions_rows(self) -> float:
        """Rows that the process of the first days keeps in files: its own, and what the filter lets through of
        those that came later."""
        others = self.figures["observations"] - self.own_observations
        return self.own_observations + others * self.wrong_share

    @cached_property
    def versions_seconds(self) -> float:
        """Each process reads the light columns of its days and of all that came later, and sorts them in files.
        The one of the first days reads the whole month, all together half of it once for each."""
        figures, setup = self.figures, self.setup
        all_read = figures["observations"] * (setup.processes + 1) / 2
        file_bytes = figures["versions_file_bytes"] * figures["versions_file_passes"]
        return max(
            # One stream, which one core takes.
            figures["observations"] * figures["versions_tool_seconds"] / MILLION,
            all_read * figures["versions_server_seconds"] / MILLION / setup.server_cores,
            all_read * figures["versions_sent_bytes"] / setup.gigabits / BYTES_PER_GIGABIT,
            self.versions_rows * file_bytes / figures["client_disk_bytes_per_second"],
        )

    @cached_property
    def server_scan_seconds(self) -> float:
        """What the server alone does for each process: ids of the month's observations that are root spans, and
        the ids of all traces, those of other months included."""
        figures = self.figures
        traces = figures["traces"] * figures["months_of_traces"]
        once = (
            figures["observations"] / MILLION * figures["roots_server_seconds"]
            + traces / MILLION * figures["moved_server_seconds"]
        )
        return once * self.setup.processes / self.setup.server_cores

    @cached_property
    def scan_seconds(self) -> float:
        """All that each process reads of rows that are not its own."""
        return self.versions_seconds + self.server_scan_seconds

    # --- all of it ------------------------------------------------------------------------

    @cached_property
    def total_seconds(self) -> float:
        """From the start to the last event."""
        return self.load_seconds + self.scan_seconds + self.stream_seconds

    @cached_property
    def merges_afterwards_seconds(self) -> float:
        """From the last event until no merges are left."""
        passes = self.passes_in_all - self.passes_during
        seconds = self.events / MILLION * self.figures["merge_server_seconds"] * passes
        return seconds / self.merge_cores

    # --- sizes ----------------------------------------------------------------------------

    @cached_property
    def store_bytes(self) -> float:
        """The trace store of a process."""
        return self.traces_to_load * self.figures["store_bytes_per_trace"]

    @cached_property
    def versions_bytes(self) -> float:
        """The files in which a process sorts the versions, before it streams; gone afterwards."""
        return self.versions_rows * self.figures["versions_file_bytes"]

    @cached_property
    def network_bytes(self) -> tuple[float, float]:
        """Bytes over the network, from the server and to it."""
        figures, processes = self.figures, self.setup.processes
        events = self.events * self.bytes_sent
        rows = figures["observations"] * (processes + 1) / 2
        versions = rows * figures["versions_sent_bytes"]
        traces = processes * self.traces_to_load * figures["load_bytes_per_trace"]
        return events + versions + traces, events

    @cached_property
    def added_bytes(self) -> float:
        """What both tables take more on the server's disk."""
        return self.events * self.table_bytes


@dataclass(frozen=True)
class OtherWay:
    """What ClickHouse does by itself: statements of its own, as many at once as there are cores."""

    figures: Figures
    server_cores: int
    # Rows a second of two statements at once on two cores.
    per_second: float
    makes_root_spans: bool = False

    @property
    def write_seconds(self) -> float:
        """Seconds of the server's processors for a million events: two statements kept two cores busy."""
        return 2 * MILLION / self.per_second

    @property
    def stream(self) -> Bound:
        """What bounds it, with the same merges as ours."""
        ours = Model(self.figures, Setup(self.server_cores, 1, 1))
        seconds = self.write_seconds + ours.merge_seconds
        disk = self.figures["server_disk_bytes_per_second"] / ours.disk_bytes
        bounds = [
            Bound(SERVER, self.server_cores * MILLION / seconds),
            Bound(SERVER_DISK, disk),
        ]
        if ours.merge_seconds > 0:
            bounds.append(Bound(MERGES, ours.merge_cores * MILLION / ours.merge_seconds))
        return lowest(bounds)

    @property
    def seconds(self) -> float:
        """Writing the events of all observations, and root spans where it makes them."""
        root_spans = self.figures["traces"] if self.makes_root_spans else 0
        return (self.figures["observations"] + root_spans) / self.stream.per_second
