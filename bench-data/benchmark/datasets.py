"""The months that are backfilled, and the tables they go into."""

import os
import re
import time
from dataclasses import dataclass

BENCH_DATA = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

MONTH = "2024-06-01"
PARTITION = "202406"

# Average bytes of input and output together.
PAYLOADS = {"narrow": 200, "typical": 1000, "wide": 20000}

# What a target is called in the tables of results, and in the database.
TARGETS = {"full": "events_full", "plain": "events_plain", "null": "events_null"}

TARGET_NAMES = {
    "full": "events_full",
    "plain": "events_full without text indexes",
    "null": "ENGINE = Null",
}


@dataclass(frozen=True)
class Dataset:
    """A month in a database of its own."""

    payload: str
    observations: int
    traces: int
    suffix: str = ""

    @property
    def database(self):
        """Name of its database."""
        return f"{self.payload}_{self.observations}_{self.traces}{self.suffix}"

    @property
    def description(self):
        """What it is, for people."""
        return f"{self.observations:,} {self.payload} observations, {self.traces:,} traces"


def read(file_name):
    """A file of bench-data."""
    with open(os.path.join(BENCH_DATA, file_name), encoding="utf-8") as file:
        return file.read()


def statements(script):
    """The statements of a script, by the same rule as scripts/run-sql.sh."""
    lines = [line for line in script.splitlines() if not line.lstrip().startswith("--")]
    parts = re.split(r";[ \t]*$", "\n".join(lines), flags=re.MULTILINE)
    return [part.strip() for part in parts if part.strip()]


def schema():
    """Langfuse's tables, then the two other targets."""
    tables = statements(read("schema.sql"))
    return tables + [*plain_target(tables), "CREATE TABLE events_null AS events_full ENGINE = Null"]


def plain_target(tables):
    """events_full, and all that hangs on it, once more under another name and without text indexes."""
    for table in tables:
        if re.match(r"CREATE (TABLE|MATERIALIZED VIEW) events_", table):
            table = table.replace("events_full", "events_plain").replace(
                "events_core", "events_plain_core"
            )
            yield "\n".join(line for line in table.splitlines() if " TYPE text(" not in line)


def prepare(server, dataset):
    """Makes the dataset unless it is there already."""
    database = dataset.database
    if server.query(f"EXISTS TABLE {database}.complete").strip() == "1":
        return
    print(f"    generating {dataset.description} …", flush=True)
    started = time.monotonic()
    server.query(f"DROP DATABASE IF EXISTS {database}")
    server.query(f"CREATE DATABASE {database}")
    server.execute_script(schema(), database)
    parameters = {
        "month": MONTH,
        "traces": dataset.traces,
        "observations": dataset.observations,
        "payload": PAYLOADS[dataset.payload],
    }
    server.execute_script(statements(read("benchmark-month.sql")), database, parameters)
    server.rest()
    server.query("CREATE TABLE complete (nothing UInt8) ENGINE = Null", database)
    print(f"    … took {time.monotonic() - started:.0f} s", flush=True)


def empty_targets(server, dataset):
    """Removes what a run has written."""
    for table in ("events_full", "events_core", "events_plain", "events_plain_core"):
        server.query(f"TRUNCATE TABLE {table}", dataset.database)
    server.rest()


def fingerprint(server, dataset, target):
    """Number of events in a target, and a hash of all their values that is the same in any order."""
    sql = (
        f"SELECT count() AS events, sum(cityHash64(tuple(*))) AS hash FROM {TARGETS[target]} FINAL"
    )
    return server.rows(sql, dataset.database)[0]


def partition_rows(server, dataset, table):
    """Rows and parts of a source, versions that are not merged yet included."""
    sql = (
        "SELECT sum(rows) AS rows, count() AS parts FROM system.parts "
        "WHERE active AND database = {database:String} AND table = {table:String}"
    )
    return server.rows(sql, parameters={"database": dataset.database, "table": table})[0]


def stored(server, dataset, table):
    """Rows, parts and bytes of a table, indexes included, versions that are not merged yet too."""
    sql = (
        "SELECT sum(rows) AS rows, count() AS parts, sum(bytes_on_disk) AS bytes_on_disk, "
        "sum(data_uncompressed_bytes) AS bytes_uncompressed FROM system.parts "
        "WHERE active AND database = {database:String} AND table = {table:String}"
    )
    return server.rows(sql, parameters={"database": dataset.database, "table": table})[0]
