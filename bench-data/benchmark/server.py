"""A ClickHouse server of the benchmark's own."""

import json
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request

from . import processes

USERS = """<clickhouse>
    <profiles><default/></profiles>
    <quotas><default/></quotas>
    <users><default>
        <password/><networks><ip>127.0.0.1</ip><ip>::1</ip></networks>
        <profile>default</profile><quota>default</quota>
    </default></users>
</clickhouse>
"""

CONFIGURATION = """<clickhouse>
    <query_log>
        <database>system</database><table>{query_log}</table>
        <flush_interval_milliseconds>1000</flush_interval_milliseconds>
    </query_log>
    <user_directories><users_xml><path>{users}</path></users_xml></user_directories>
    <max_server_memory_usage>{memory}</max_server_memory_usage>
</clickhouse>
"""

# How long the server may take to begin, and to end.
PATIENCE_SECONDS = 60

# How long the server must have been without merges to count as at rest.
REST_SECONDS = 1.5


class QueryError(Exception):
    """What ClickHouse said, with the code of its exception."""

    def __init__(self, code, message):
        super().__init__(message)
        self.code = code


class Server:
    """A server that logs its queries, on the loopback address, in UTC."""

    def __init__(self, launcher, workplace, data, library):
        self.launcher = launcher
        self.workplace = workplace
        self.data = data
        self.library = library
        self.port = None
        self.query_log = None
        self.process = None

    def start(self, memory_bytes=None):
        """Starts the server. Of the machine's memory it takes at most 70 %, or what is given."""
        memory = memory_bytes or int(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") * 0.7)
        # The embedded server forgets its log when it ends, and will not make one of that name again.
        self.query_log = f"query_log_{time.time_ns()}"
        users = os.path.join(self.workplace, "users.xml")
        configuration = os.path.join(self.workplace, "config.xml")
        _write(users, USERS)
        _write(
            configuration,
            CONFIGURATION.format(users=users, memory=memory, query_log=self.query_log),
        )
        self.port = free_port()
        command = [self.launcher, "--exit-with-stdin", "--path", self.data]
        command += ["--http-port", str(self.port), "--config-file", configuration]
        # The embedded server has no setting for the time zone.
        environment = {**os.environ, "TZ": "UTC", "CLICKHOUSE_LIBRARY": self.library}
        with open(os.path.join(self.workplace, "server.log"), "ab") as log:
            # It ends with its standard input, so it cannot outlive this program.
            self.process = subprocess.Popen(
                command, env=environment, stdin=subprocess.PIPE, stdout=log, stderr=log
            )
        self._wait_until_it_answers()

    def _wait_until_it_answers(self):
        deadline = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                with urllib.request.urlopen(self.url + "/ping", timeout=2):
                    return self._require_own_data()
            except OSError:
                time.sleep(0.2)
        with open(
            os.path.join(self.workplace, "server.log"), encoding="utf-8", errors="replace"
        ) as log:
            raise RuntimeError("ClickHouse did not start:\n" + log.read()[-3000:])

    def _require_own_data(self):
        """Another server may have taken the port; nothing must be written to that one."""
        path = self.query("SELECT path FROM system.disks WHERE name = 'default'").strip()
        if os.path.realpath(path) != os.path.realpath(self.data):
            raise RuntimeError(f"{self.url} is another server, with its data in {path}")

    def stop(self):
        """Ends the server. Its data stays."""
        if self.process is None:
            return
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdin.close()
        self.process = None

    def restart(self, memory_bytes=None):
        """Starts the server again with the same data, and perhaps with less memory."""
        self.stop()
        self.start(memory_bytes)

    @property
    def url(self):
        """Address of the HTTP interface."""
        return f"http://127.0.0.1:{self.port}"

    def processor_seconds(self):
        """Processor time of the server so far."""
        return processes.processor_seconds(self.process.pid)

    def query(self, sql, database="default", parameters=None, **settings):
        """Runs a statement and gives its result as text."""
        options = {"database": database, "wait_end_of_query": 1, **settings}
        options |= {f"param_{name}": value for name, value in (parameters or {}).items()}
        request = urllib.request.Request(
            f"{self.url}/?{urllib.parse.urlencode(options)}",
            data=sql.encode(),
            headers={"User-Agent": "benchmark"},
        )
        try:
            with urllib.request.urlopen(request) as response:
                return response.read().decode()
        except urllib.error.HTTPError as error:
            code = int(error.headers.get("X-ClickHouse-Exception-Code") or 0)
            raise QueryError(code, error.read().decode(errors="replace").strip()) from None

    def rows(self, sql, database="default", parameters=None, **settings):
        """Runs a query and gives its rows as dictionaries."""
        answer = self.query(
            sql + " FORMAT JSONEachRow",
            database,
            parameters,
            output_format_json_quote_64bit_integers=0,
            **settings,
        )
        return [json.loads(line) for line in answer.splitlines()]

    def execute_script(self, statements, database, parameters=None):
        """Runs statements one after another."""
        for statement in statements:
            self.query(statement, database, parameters)

    def discard(self, sql, database, settings):
        """Runs a query whose result goes to /dev/null, and gives the seconds it took."""
        url = f"{self.url}/?{urllib.parse.urlencode({'database': database, **settings})}"
        command = ["curl", "--silent", "--show-error", "--fail", "--output", "/dev/null"]
        started = time.monotonic()
        subprocess.run([*command, "--data-binary", "@-", url], input=sql.encode(), check=True)
        return time.monotonic() - started

    def queries_since(self, moment, columns, condition):
        """What the log knows of the queries that began after a moment (since 1970)."""
        self._wait_for_last_queries()
        self.query("SYSTEM FLUSH LOGS")
        return self.rows(
            f"SELECT {columns} FROM system.{self.query_log} "
            f"WHERE type != 'QueryStart' AND ({condition}) "
            f"AND query_start_time_microseconds >= fromUnixTimestamp64Micro({int(moment * 1e6)})"
        )

    def _wait_for_last_queries(self):
        """An answer can arrive a moment before its query is in the log."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        # This very query is one of them. 2 is HTTP.
        others = "SELECT count() - 1 FROM system.processes WHERE interface = 2"
        while int(self.query(others)) and time.monotonic() < deadline:
            time.sleep(0.05)

    def rest(self, most_seconds=1800):
        """Waits until no merges are left, so that one run does not pay for another's. Gives the time at
        which the last one had ended."""
        deadline = time.monotonic() + most_seconds
        quiet_since = time.monotonic()
        while time.monotonic() < deadline:
            if int(self.query("SELECT count() FROM system.merges WHERE database != 'system'")):
                quiet_since = time.monotonic()
            elif time.monotonic() - quiet_since >= REST_SECONDS:
                break
            time.sleep(0.25)
        return quiet_since


def free_port():
    """A port that was free a moment ago."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def _write(path, text):
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
