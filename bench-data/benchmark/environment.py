"""The machine, and what the benchmark needs on it."""

import hashlib
import os
import platform
import subprocess
import sys

from . import datasets

REPOSITORY = os.path.dirname(datasets.BENCH_DATA)


def programs_directory():
    """Where the programs are that are measured."""
    return os.environ.get("BENCH_PROGRAMS") or os.path.join(_target_directory(), "release")


def results_directory():
    """Where the results go."""
    return os.environ.get("BENCH_RESULTS") or os.path.join(_target_directory(), "bench")


def _target_directory():
    return os.environ.get("CARGO_TARGET_DIR") or os.path.join(REPOSITORY, "target")


def program(name):
    """Path of a program of this repository."""
    path = os.path.join(programs_directory(), name)
    if not os.access(path, os.X_OK):
        sys.exit(f"{path} is not built. Run 'make bench'.")
    return path


def clickhouse_library():
    """Path of the ClickHouse library, which is downloaded if need be; empty if a binary is used."""
    if os.environ.get("CLICKHOUSE_BINARY"):
        return ""
    script = os.path.join(REPOSITORY, "scripts", "fetch-clickhouse.sh")
    return os.environ.get("CLICKHOUSE_LIBRARY") or _output([script])


def python_with_packages():
    """A Python that has the packages of bench-data/requirements.txt, in an environment of its own."""
    requirements = os.path.join(datasets.BENCH_DATA, "requirements.txt")
    with open(requirements, "rb") as file:
        name = hashlib.sha256(file.read() + sys.version.encode()).hexdigest()[:12]
    home = os.path.expanduser(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    cache = os.environ.get("EVENTS_BACKFILL_CACHE") or os.path.join(home, "events-backfill")
    directory = os.path.join(cache, f"benchmark-python-{name}")
    python = os.path.join(directory, "bin", "python")
    ready = os.path.join(directory, "ready")
    if not os.path.exists(ready):
        print(f"Installing clickhouse-connect and matplotlib with pip into {directory}", flush=True)
        _install([sys.executable, "-m", "venv", "--clear", directory])
        _install([python, "-m", "pip", "install", "--quiet", "--requirement", requirements])
        with open(ready, "w", encoding="utf-8"):
            pass
    return python


def _install(command):
    if subprocess.run(command, check=False).returncode != 0:
        sys.exit(
            f"'{' '.join(command)}' failed. The benchmark needs Python 3.10 or newer with venv and pip "
            "(on Debian and Ubuntu the package python3-venv)."
        )


def describe(server, python):
    """Machine and versions."""
    packages = "import clickhouse_connect; print(clickhouse_connect.__version__)"
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "clickhouse": server.query("SELECT version()").strip(),
        "events_backfill": _output([program("events-backfill"), "--version"]),
        "commit": _output(["git", "-C", REPOSITORY, "describe", "--always", "--dirty"]),
        "rustc": _output(["rustc", "--version"]),
        "python": platform.python_version(),
        "clickhouse_connect": _output([python, "-c", packages]) if python else "",
    }


def _processor():
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next(
                line.partition(":")[2].strip() for line in file if line.startswith("model name")
            )
    except (OSError, StopIteration):
        return platform.processor()


def _output(command):
    """What a command prints, or nothing if it is not there."""
    try:
        return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
