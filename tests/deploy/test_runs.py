"""The command lines of the files, run as they stand against a real ClickHouse: interrupted, started
again, finished. Of the settings only the server's address, its user and the password are others."""

import json
import os
import re
import signal
import subprocess
import urllib.request

import files
import pytest
from containers import IMAGE, Container, run
from machine import MONTHS, PASSWORD, PROGRAM, USER, wait_until

# The program ends inserts under way after ten seconds, and has to write its state then.
ENDS_WITHIN = 20


class Process:
    """How the unit runs the program: as a user without rights, in a directory of its own."""

    USER = 61184  # the first of those that DynamicUser takes

    def __init__(self, command, environment):
        self.command, self.environment = command, environment

    def spawn(self):
        """Starts it."""
        as_user = ["setpriv", f"--reuid={self.USER}", f"--regid={self.USER}", "--clear-groups"]
        as_user += ["--no-new-privs", "--bounding-set=-all"]
        return subprocess.Popen(
            [*as_user, *self.command], env=self.environment, cwd="/", text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def stop(self, process, _grace):
        """As `systemctl stop` does."""
        process.send_signal(signal.SIGTERM)


def ended(process, within=180):
    """Exit code and output."""
    output, _ = process.communicate(timeout=within)
    return process.returncode, output


def interrupt_and_go_on(server, runner, grace, at_work=lambda: None):
    """Ends a run in its second month, starts it again with the same words, and once more. Gives the exit
    code of the first."""
    process = runner.spawn()
    wait_until("the second month", lambda: server.events(MONTHS[1]) > 0, process)
    at_work()
    runner.stop(process, grace)
    code, output = ended(process, ENDS_WITHIN)
    assert "the same command line continues it" in output, output
    server.speed_up()
    again, output = ended(runner.spawn())
    assert again == 0, output
    assert "was finished on" in output
    server.assert_complete()
    events = server.number("SELECT count() FROM events_full")
    at_last, output = ended(runner.spawn())
    assert at_last == 0, output
    assert output.count("was finished on") == len(MONTHS)
    assert server.number("SELECT count() FROM events_full") == events
    return code


def test_the_image_has_what_it_promises(store):
    image = json.loads(run(store.podman("image", "inspect", IMAGE)))[0]
    config = image["Config"]
    assert config["User"] == "10001:10001"
    assert config["StopSignal"] == "SIGTERM"
    assert config["Volumes"] == {"/state": {}}
    assert {"STATE_DIR=/state", "TMPDIR=/state"} <= set(config["Env"])
    assert config["Labels"]["org.opencontainers.image.title"] == "events-backfill"
    words = ["run", "--rm", *Container.ALWAYS, "--read-only", "--cap-drop=ALL", IMAGE]
    assert run(store.podman(*words, "--version")).startswith("events-backfill ")
    assert "--resume-or-start" in run(store.podman(*words))


def test_the_service_of_the_compose_file(store, start_server):
    server = start_server()
    dotenv = {"CLICKHOUSE_USER": USER}
    service = files.compose_service(dotenv)
    # A password in .env may have signs that YAML would take for its own.
    environment = {**service["environment"], "CLICKHOUSE_PASSWORD": PASSWORD}
    assert environment["CLICKHOUSE_URL"] == "http://clickhouse:8123"
    environment["CLICKHOUSE_URL"] = server.url
    assert service["read_only"] and service["restart"].startswith("on-failure")
    options = ["--read-only", "--user", service["user"], "--memory", service["mem_limit"]]
    options += [f"--cap-drop={name}" for name in service["cap_drop"]]
    options += ["--security-opt=no-new-privileges"]
    [volume] = service["volumes"]
    options += ["--volume", volume]
    container = Container(store, "compose", options, service["command"], environment)

    def at_work():
        # It is process 1, so that no shell is between it and the signal, and it can be asked.
        assert "running" in container.inside("status")
        path = run(store.podman("volume", "inspect", "--format={{.Mountpoint}}", volume.split(":")[0]))
        assert (files.Path(path) / MONTHS[1] / "lock").read_text() == "process 1\n"

    grace = int(service["stop_grace_period"].removesuffix("s"))
    try:
        assert interrupt_and_go_on(server, container, grace, at_work) == 143
    finally:
        container.end()


class Job:
    """How a Job runs the program."""

    def __init__(self, path, store, server):
        self.store = store
        self.spec, self.pod = files.manifests(path)["Job"]["spec"], files.pod(path)
        [self.container] = self.pod["containers"]
        secrets = {"langfuse-clickhouse-auth": {"password": PASSWORD}}
        self.environment = files.pod_environment(path, secrets)
        assert self.environment["CLICKHOUSE_URL"] == "http://langfuse-clickhouse-headless:8123"
        self.environment |= {"CLICKHOUSE_URL": server.url, "CLICKHOUSE_USER": USER}

    def run(self, name, volume, environment):
        """A pod with that volume and these further variables, to be spawned."""
        context = self.pod["securityContext"]
        assert context["runAsNonRoot"] and self.container["securityContext"]["readOnlyRootFilesystem"]
        if not volume.exists():
            # As Kubernetes prepares it for fsGroup: of root, and its group may write.
            volume.mkdir()
            os.chown(volume, 0, context["fsGroup"])
            volume.chmod(0o2775)
        [mount] = self.container["volumeMounts"]
        options = ["--read-only", "--user", f"{context['runAsUser']}:{context['runAsGroup']}"]
        options += ["--group-add", str(context["fsGroup"]), "--security-opt=no-new-privileges"]
        dropped = self.container["securityContext"]["capabilities"]["drop"]
        options += [f"--cap-drop={name}" for name in dropped]
        options += ["--memory", self.container["resources"]["limits"]["memory"].removesuffix("i").lower()]
        options += ["--volume", f"{volume}:{mount['mountPath']}"]
        environment = {**self.environment, **environment}
        return Container(self.store, name, options, self.container["args"], environment)

    def action(self, code):
        """What it does after a pod that ended so; None: starts another one, and counts it."""
        for rule in self.spec["podFailurePolicy"]["rules"]:
            of_code = rule.get("onExitCodes")
            name = self.container["name"]
            if of_code and of_code["containerName"] == name and code in of_code["values"]:
                return rule["action"]
        return None


def test_the_job(store, start_server, tmp_path):
    server = start_server()
    job = Job(files.JOB, store, server)
    volume = tmp_path / "volume"
    pod = job.run("job", volume, {})

    def at_work():
        probe = job.container["livenessProbe"]["httpGet"]
        ports = {port["name"]: port["containerPort"] for port in job.container["ports"]}
        assert get(ports[probe["port"]], probe["path"]) == "ok\n"
        notes = job.spec["template"]["metadata"]["annotations"]
        metrics = get(notes["prometheus.io/port"], notes["prometheus.io/path"])
        assert "events_backfill_rows_processed_total" in metrics
        assert (volume / MONTHS[1]).stat().st_mode & 0o777 == 0o700

    try:
        grace = job.pod["terminationGracePeriodSeconds"]
        code = interrupt_and_go_on(server, pod, grace, at_work)
        assert (code, job.action(code)) == (143, "Ignore")
        wrong = {"CLICKHOUSE_PASSWORD": "wrong"}
        code, output = ended(job.run("job", volume, wrong).spawn())
        assert (code, job.action(code)) == (2, "FailJob"), output
        away = {"CLICKHOUSE_URL": "http://127.0.0.1:1", "MAX_RETRIES": "1"}
        code, output = ended(job.run("job", volume, away).spawn())
        assert (code, job.action(code)) == (1, None), output
    finally:
        pod.end()


def test_the_indexed_job_whose_pod_is_lost_with_its_volume(store, start_server, tmp_path):
    server = start_server()
    job = Job(files.INDEXED_JOB, store, server)
    pods = range(job.spec["completions"])
    started = []

    def spawn(index):
        # Each time with a volume that is empty, and with the variable that Kubernetes sets.
        volume = tmp_path / f"volume-{len(started)}"
        started.append(job.run(f"job-{index}", volume, {"JOB_COMPLETION_INDEX": str(index)}))
        return started[-1].spawn()

    lost = pods[3]
    try:
        process = spawn(lost)
        wait_until("the first events", lambda: server.events(MONTHS[0]) > 0, process)
        run(store.podman("kill", "--signal=KILL", started[-1].name))
        assert ended(process)[0] == 137
        server.speed_up()
        for index in reversed(pods):
            code, output = ended(spawn(index))
            assert code == 0, output
            shard = f"{index + 1}/{len(pods)}"
            assert f"shard {shard}" in output, output
            found = re.search(f"already has [0-9,]+ rows of {MONTHS[0]} {shard}", output)
            assert bool(found) == (index == lost), output
        server.assert_complete()
    finally:
        for pod in started:
            pod.end()


def get(port, path):
    """What is served there."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
        return answer.read().decode()


@pytest.fixture
def open_directory():
    """A directory that other users can enter, which pytest's own are not."""
    directory = files.Path(run(["mktemp", "--directory", "/tmp/events-backfill-unit.XXXXXX"]))
    directory.chmod(0o755)
    yield directory
    run(["rm", "-rf", str(directory)])


def test_the_unit(start_server, open_directory):
    server = start_server()
    directory = open_directory
    unit = files.unit()
    specifiers = {
        "S": str(directory),
        "n": "events-backfill.service",
        "paths": {
            "/usr/local/bin/events-backfill": str(directory / "program"),
            "/run/credentials": str(directory),
        },
    }
    run(["cp", PROGRAM, str(directory / "program")])
    # As systemd prepares both for the user of the service.
    state = directory / unit["StateDirectory"][0]
    state.mkdir(mode=int(unit["StateDirectoryMode"][0], 8))
    [credential] = unit["LoadCredential"]
    password = directory / "events-backfill.service" / credential.partition(":")[0]
    password.parent.mkdir()
    password.write_text(PASSWORD + "\n")
    password.chmod(0o400)
    for path in (state, password):
        os.chown(path, Process.USER, Process.USER)
    command, environment = files.unit_command(specifiers)
    of_file = files.dotenv(files.UNIT_ENVIRONMENT.read_text())
    of_file |= {"CLICKHOUSE_URL": server.url, "CLICKHOUSE_USER": USER}
    service = Process(command, {**environment, **of_file})
    successes, never_again = (
        set(map(int, unit[name][0].split()))
        for name in ("SuccessExitStatus", "RestartPreventExitStatus")
    )
    code = interrupt_and_go_on(server, service, int(unit["TimeoutStopSec"][0]))
    assert code == 143 and code in successes
    password.write_text("wrong\n")
    code, output = ended(service.spawn())
    assert code == 2 and code in never_again, output
