"""Runs programs, and tells what they took."""

import os
import subprocess
import threading
import time
from dataclasses import dataclass, field

TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")

# How often the processor time of a program is looked at.
SAMPLE_SECONDS = 0.02


def processor_seconds(process_id):
    """Processor time of a process so far, user and system together."""
    with open(f"/proc/{process_id}/stat", encoding="utf-8") as file:
        # The name, in brackets, may contain anything.
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_SECOND


def available_memory():
    """Bytes of memory that programs could still take."""
    with open("/proc/meminfo", encoding="utf-8") as file:
        for line in file:
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    raise OSError("/proc/meminfo does not tell the available memory")


@dataclass
class Outcome:
    """What came of a program."""

    exit_code: int
    seconds: float
    user_seconds: float
    system_seconds: float
    peak_bytes: int
    output: str
    # Pairs of time (since 1970) and processor seconds up to then.
    samples: list = field(default_factory=list)

    @property
    def processor_seconds(self):
        """User and system time, from getrusage."""
        return self.user_seconds + self.system_seconds

    def processor_seconds_until(self, moment):
        """Processor time used before a moment, between two samples by interpolation."""
        before = (self.samples[0][0], 0.0) if self.samples else (moment, 0.0)
        for sample in self.samples:
            if sample[0] >= moment:
                span = sample[0] - before[0]
                share = (moment - before[0]) / span if span > 0 else 1.0
                return before[1] + (sample[1] - before[1]) * max(0.0, share)
            before = sample
        return before[1]


def run(command, environment, directory, memory_group=None):
    """Runs a program to its end, inside of a memory group if one is given."""
    if memory_group:
        command = memory_group.enter(command)
    with open(
        os.path.join(directory, "output"), "w+", encoding="utf-8", errors="replace"
    ) as output:
        started = time.monotonic()
        process = subprocess.Popen(
            command,
            env=environment,
            cwd=directory,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        samples = []
        ended = threading.Event()
        sampler = threading.Thread(target=_sample, args=(process.pid, samples, ended))
        sampler.start()
        try:
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        except BaseException:
            process.kill()
            process.wait()
            raise
        finally:
            ended.set()
            sampler.join()
        seconds = time.monotonic() - started
        output.seek(0)
        return Outcome(
            exit_code=process.returncode,
            seconds=seconds,
            user_seconds=usage.ru_utime,
            system_seconds=usage.ru_stime,
            peak_bytes=usage.ru_maxrss * 1024,
            output=output.read(),
            samples=samples,
        )


def _sample(process_id, samples, ended):
    """Notes the processor time of a process again and again."""
    while not ended.is_set():
        try:
            samples.append((time.time(), processor_seconds(process_id)))
        except OSError:
            return
        ended.wait(SAMPLE_SECONDS)


class MemoryGroup:
    """A control group that limits memory, page cache included. Of version 1 or 2; needs root."""

    def __init__(self, limit_bytes):
        name = f"events-backfill-benchmark-{os.getpid()}"
        if os.path.exists("/sys/fs/cgroup/memory/memory.limit_in_bytes"):
            self.version = 1
            self.path = f"/sys/fs/cgroup/memory/{name}"
            self.limit_file, self.peak_file = "memory.limit_in_bytes", "memory.max_usage_in_bytes"
        else:
            self.version = 2
            self.path = f"/sys/fs/cgroup/{name}"
            self.limit_file, self.peak_file = "memory.max", "memory.peak"
        os.mkdir(self.path)
        try:
            self._write(self.limit_file, limit_bytes)
        except OSError:
            self.remove()
            raise

    def enter(self, command):
        """The command, run inside of the group."""
        return ["sh", "-c", 'echo $$ >"$0/cgroup.procs" && exec "$@"', self.path, *command]

    def peak(self):
        """The most memory the group ever had, page cache included: usually all it may have."""
        with open(f"{self.path}/{self.peak_file}", encoding="utf-8") as file:
            return int(file.read())

    def remove(self):
        """Removes the group, whose programs must have ended."""
        os.rmdir(self.path)

    def _write(self, file_name, value):
        with open(f"{self.path}/{file_name}", "w", encoding="utf-8") as file:
            file.write(str(value))
