"""A ClickHouse server and the program's processes."""

import os
import subprocess
import time
import urllib.error
import urllib.request

from files import REPOSITORY

PROGRAMS = os.environ["DEPLOY_PROGRAMS"]
PROGRAM = os.path.join(PROGRAMS, "events-backfill")
PATIENCE_SECONDS = 180
MONTHS = ["202406", "202405"]
USER, PASSWORD = "langfuse", "it's $ecret"

ENTRY = """<{name}>
    <password>{password}</password><networks><ip>127.0.0.1</ip></networks>
    <profile>default</profile><quota>default</quota>
</{name}>"""
USERS = """<clickhouse><profiles><default/></profiles><quotas><default/></quotas>
<users>{users}</users></clickhouse>"""


def wait_until(what, is_true, process=None):
    """Waits, and fails where it takes too long or the process ends first."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not is_true():
        assert time.monotonic() < deadline, f"{what} takes too long"
        assert process is None or process.poll() is None, f"the run ended before {what}"
        time.sleep(0.05)


class Server:
    """A server with two months in the database `default`, where Langfuse has its tables too."""

    def __init__(self, directory, port):
        self.url = f"http://127.0.0.1:{port}"
        # The embedded server begins as `default`, who must have no password for that.
        users = {"default": "", USER: PASSWORD}
        entries = (ENTRY.format(name=name, password=word) for name, word in users.items())
        (directory / "users.xml").write_text(USERS.format(users="".join(entries)))
        (directory / "config.xml").write_text(
            f"<clickhouse><user_directories><users_xml><path>{directory}/users.xml</path>"
            "</users_xml></user_directories></clickhouse>"
        )
        command = [os.path.join(PROGRAMS, "examples", "embedded_clickhouse"), "--exit-with-stdin"]
        command += ["--path", str(directory / "data"), "--http-port", str(port)]
        command += ["--config-file", str(directory / "config.xml")]
        with open(directory / "server.log", "wb") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=log, stderr=log, env={**os.environ, "TZ": "UTC"}
            )
        wait_until("the server's start", self._answers, self.process)

    def _answers(self):
        try:
            with urllib.request.urlopen(self.url + "/ping", timeout=2):
                return True
        except OSError:
            return False

    def load_months(self):
        """Langfuse's tables with two months of all oddities, and a target that can be made slow."""
        run_sql = [REPOSITORY / "scripts" / "run-sql.sh", self.url]
        sample = REPOSITORY / "bench-data" / "sample-month.sql"
        subprocess.run([*run_sql, REPOSITORY / "bench-data" / "schema.sql"], check=True)
        for month in MONTHS:
            day = f"param_month={month[:4]}-{month[4:]}-01"
            subprocess.run([*run_sql, sample, day, "param_observations=3000"], check=True)
        self.query("CREATE TABLE brake (pulled UInt8) ENGINE = MergeTree ORDER BY pulled")
        self.query("INSERT INTO brake VALUES (1)")
        self.query(
            "CREATE MATERIALIZED VIEW slowly ENGINE = Null AS "
            "SELECT sleep(if((SELECT count() FROM brake) > 0, 2, 0)) AS slept FROM events_full"
        )

    def speed_up(self):
        """Ends the slowness."""
        self.query("TRUNCATE TABLE brake")

    def query(self, sql):
        """The answer to a statement."""
        request = urllib.request.Request(self.url, sql.encode())
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.read().decode().strip()
        except urllib.error.HTTPError as error:
            raise AssertionError(error.read().decode()) from error

    def number(self, sql):
        """The answer as a number."""
        return int(self.query(sql))

    def events(self, month):
        """Rows of a month in the target."""
        return self.number(f"SELECT count() FROM events_full WHERE _partition_id = '{month}'")

    def assert_complete(self):
        """Each observation is one event, and each trace one root span, and there is nothing else."""
        spans = "SELECT project_id, trace_id, id FROM observations FINAL WHERE is_deleted = 0"
        roots = (
            "SELECT project_id, id, concat('t-', id) FROM (SELECT project_id, id, "
            "argMax(is_deleted, event_ts) AS gone FROM traces GROUP BY ALL) WHERE gone = 0"
        )
        wanted = f"SELECT * FROM ({spans}) UNION DISTINCT SELECT * FROM ({roots})"
        found = "SELECT project_id, trace_id, span_id FROM events_full"
        assert self.query(f"SELECT * FROM ({wanted}) EXCEPT SELECT * FROM ({found})") == ""
        assert self.query(f"SELECT * FROM ({found}) EXCEPT SELECT * FROM ({wanted})") == ""
        twice = "SELECT count() - uniqExact(project_id, trace_id, span_id) FROM events_full"
        assert self.number(twice) == 0

    def stop(self):
        """Ends it."""
        self.process.stdin.close()
        self.process.wait(60)
