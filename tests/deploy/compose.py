"""deploy/compose: its form by the schema of compose files, its references, and the settings of each service."""

import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import jsonschema
import yaml

from report import DEPLOY, ROOT

SERVICES = ["storage-svc", "job-svc", "pool-svc", "monitor-svc", "gateway"]


def schema():
    """The schema that docker-compose 1.29 brings along, which is old: what it does not know is in `NEWER`. The package is
    fetched and opened, not installed: it wants libraries of its time."""
    cache = Path(sys.prefix) / "compose"
    package = cache / "docker_compose-1.29.2-py2.py3-none-any.whl"
    if not package.exists():
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        subprocess.run([*pip, "--dest", cache, "docker-compose==1.29.2"], check=True)
    with zipfile.ZipFile(package) as opened:
        return json.loads(opened.read("compose/config/compose_spec.json"))


# Top-level keys that the specification got after that.
NEWER = {"name"}


def interpolated(value, variables):
    """`${NAME}`, `${NAME:-default}`, `${NAME:?message}`."""
    if isinstance(value, dict):
        return {key: interpolated(inner, variables) for key, inner in value.items()}
    if isinstance(value, list):
        return [interpolated(inner, variables) for inner in value]
    if not isinstance(value, str):
        return value

    def put(match):
        name, kind, rest = match.group(1), match.group(2), match.group(3)
        if variables.get(name):
            return variables[name]
        if kind == ":-":
            return rest
        raise KeyError(f"{name} is not set ({rest})")

    return re.sub(r"\$\{(\w+)(?:(:-|:\?)([^}]*))?\}", put, value)


def prepared(directory):
    """What deploy/compose/init makes, in a directory of the test's: variables and secrets."""
    environment = {**os.environ, "KILN_COMPOSE_DIR": str(directory)}
    for _ in range(2):
        subprocess.run([DEPLOY / "compose/init", "kiln.example"], env=environment, check=True, capture_output=True)
    lines = (directory / ".env").read_text().split("\n")
    variables = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
    return variables, {path.name: path.read_text() for path in (directory / "secrets").iterdir()}


def check(report, tree, directory):
    text = (DEPLOY / "compose/compose.yaml").read_text()
    variables, secrets = prepared(directory)
    report.expect((directory / ".env").stat().st_mode & 0o077 == 0, ".env can be read by others")
    report.expect((directory / "secrets").stat().st_mode & 0o077 == 0, "secrets/ can be entered by others")
    try:
        interpolated(yaml.safe_load(text), {})
        report.problem("without .env nothing is missed")
    except KeyError:
        pass
    composed = interpolated(yaml.safe_load(text), variables)

    form = schema()
    form.pop("$schema", None)
    known = {key: value for key, value in composed.items() if key not in NEWER}
    for error in jsonschema.Draft7Validator(form).iter_errors(known):
        report.problem(f"{'.'.join(map(str, error.absolute_path))}: {error.message[:300]}")

    taken = {}
    for name, service in composed["services"].items():
        for other in service.get("depends_on", {}):
            depended = composed["services"].get(other)
            if report.expect(depended, f"{name} depends on {other}, which is not there"):
                report.expect("healthcheck" in depended, f"{name} waits for the health of {other}, which has no check")
        for network in service.get("networks", []):
            report.expect(network in composed["networks"], f"{name}: no network {network}")
        for secret in service.get("secrets", []):
            known_secret = composed["secrets"].get(secret, {}).get("file", "")
            report.expect(Path(known_secret).name in secrets, f"{name}: init makes no secret {secret}")
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            if source.startswith("."):
                report.expect((DEPLOY / "compose" / source).exists(), f"{name}: there is no {source}")
            else:
                report.expect(source in composed["volumes"], f"{name}: no volume {source}")
        for port in service.get("ports", []):
            outside = port.rsplit(":", 1)[0]
            report.expect(outside not in taken, f"{name} and {taken.get(outside)} both take {outside}")
            taken[outside] = name
        report.expect(":latest" not in service["image"] and ":" in service["image"], f"{name}: an image without a version")

    for name in SERVICES:
        service = composed["services"][name]
        environment = {key: str(value) for key, value in service["environment"].items()}
        files = {f"/run/secrets/{secret}": secrets[secret] for secret in service["secrets"]}
        told = tree.check_config(service["command"], environment, files)
        report.expect(told is None, f"{name} refuses its settings: {told}")

    scraped = yaml.safe_load((DEPLOY / "compose/prometheus.yaml").read_text())
    targets = {job["job_name"]: job["static_configs"][0]["targets"] for job in scraped["scrape_configs"]}
    for name in SERVICES:
        listen = next(value for key, value in composed["services"][name]["environment"].items() if re.fullmatch(r"KILN_[A-Z]+_LISTEN", key))
        report.expect(targets.get(name) == [f"{name}:{listen.split(':')[1]}"], f"Prometheus does not scrape {name}")
    report.not_checked("starting the containers of compose.yaml (needs a container engine)")
    return f"{len(composed['services'])} services, settings of {len(SERVICES)} taken by the programs"


def all_yaml(report):
    """Every YAML file that is no template can be read."""
    paths = [path for path in DEPLOY.rglob("*.yaml") if "templates" not in path.parts]
    for path in paths:
        try:
            list(yaml.safe_load_all(path.read_text()))
        except yaml.YAMLError as error:
            report.problem(f"{path.relative_to(ROOT)}: {error}")
    return f"{len(paths)} files"
