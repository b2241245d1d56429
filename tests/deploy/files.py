"""The files of deploy/, as those who carry them out read them."""

import re
import shlex
from pathlib import Path

import yaml

REPOSITORY = Path(__file__).resolve().parents[2]
DEPLOY = REPOSITORY / "deploy"
COMPOSE = DEPLOY / "compose.override.yaml"
JOB = DEPLOY / "kubernetes" / "job.yaml"
VALUES = DEPLOY / "kubernetes" / "extra-manifests.values.yaml"
INDEXED_JOB = DEPLOY / "kubernetes" / "indexed-job.yaml"
INDEXED_VALUES = DEPLOY / "kubernetes" / "extra-manifests-indexed.values.yaml"
# What each file of values brings.
CHARTS = {VALUES: JOB, INDEXED_VALUES: INDEXED_JOB}
UNIT = DEPLOY / "systemd" / "events-backfill.service"
UNIT_ENVIRONMENT = DEPLOY / "systemd" / "events-backfill.env"
DOCKERFILE = DEPLOY / "Dockerfile"


def compose_service(dotenv):
    """The service, with the variables of Langfuse's .env filled in."""

    def fill(match):
        return dotenv.get(match["name"]) or match["default"]

    text = re.sub(r"\$\{(?P<name>\w+):-(?P<default>\w*)\}", fill, COMPOSE.read_text())
    assert "${" not in text
    return yaml.safe_load(text)["services"]["events-backfill"]


def manifests(path):
    """What is in a file of manifests, by kind."""
    return {it["kind"]: it for it in yaml.safe_load_all(path.read_text())}


def pod(path):
    """The pod of the Job."""
    return manifests(path)["Job"]["spec"]["template"]["spec"]


def pod_environment(path, secrets):
    """The container's variables, with those of Secrets filled in."""
    [container] = pod(path)["containers"]

    def value(variable):
        if "value" in variable:
            return variable["value"]
        reference = variable["valueFrom"]["secretKeyRef"]
        return secrets[reference["name"]][reference["key"]]

    return {variable["name"]: value(variable) for variable in container["env"]}


def unit():
    """The settings of the unit's [Service], each a list of its values."""
    settings = {}
    for line in UNIT.read_text().partition("[Service]")[2].partition("[Install]")[0].splitlines():
        if "=" in line and not line.startswith("#"):
            name, _, value = line.partition("=")
            settings.setdefault(name, []).append(value)
    return settings


def unit_command(specifiers):
    """The unit's command line and variables, with systemd's specifiers filled in."""

    def fill(text):
        filled = re.sub(r"%(\w)", lambda match: specifiers[match[1]], text)
        for name, path in specifiers["paths"].items():
            filled = filled.replace(name, path)
        return filled

    [command] = unit()["ExecStart"]
    settings = (shlex.split(fill(value))[0] for value in unit()["Environment"])
    return shlex.split(fill(command)), dict(setting.split("=", 1) for setting in settings)


def dotenv(text):
    """Variables of a file with a NAME=value on each line."""
    lines = (line for line in text.splitlines() if "=" in line and not line.startswith("#"))
    return dict(line.split("=", 1) for line in lines)
