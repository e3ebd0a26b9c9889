"""The other files of infra/ and the workflows, each held against the schema or the model of the tool that reads it.

None of them is run here: no image is built, no container, cluster or virtual machine is started.
"""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
import sys
import uuid
from importlib.metadata import version
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
from ruamel.yaml import YAML

ROOT = Path(__file__).parents[2]
INFRA = ROOT / "infra"
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yaml"))


def read(path: Path) -> Any:
    return json.loads(path.read_text()) if path.suffix == ".json" else YAML(typ="safe").load(path)


def run(*command: str | Path) -> None:
    done = subprocess.run([*map(str, command)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def script(name: str) -> Path:
    return Path(sys.executable).parent / name


@pytest.mark.parametrize("template", sorted((INFRA / "aws").glob("*.yaml")), ids=lambda path: path.name)
def test_cfn_lint_has_no_complaint(template: Path) -> None:
    run(script("cfn-lint"), "--non-zero-exit-code", "informational", template)


def test_hadolint_has_no_complaint() -> None:
    if not (hadolint := shutil.which("hadolint", path=str(script("")))):
        pytest.skip("hadolint is published for Linux on x86-64")
    run(hadolint, INFRA / "Dockerfile")


def test_the_image_has_what_it_copies_and_no_more() -> None:
    copied = re.findall(r"^COPY (?!--from)(.*) \S+$", (INFRA / "Dockerfile").read_text(), re.MULTILINE)
    context = (INFRA / "Dockerfile.dockerignore").read_text().splitlines()
    assert copied[0].split() == [line[1:] for line in context if line.startswith("!")]
    assert "*" in context
    assert all((ROOT / name).is_file() for name in copied[0].split())


def test_compose_is_by_the_specification() -> None:
    run(script("check-jsonschema"), "--builtin-schema", "vendor.compose-spec", INFRA / "compose.yaml")


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_are_by_github_s_schema(workflow: Path) -> None:
    run(script("check-jsonschema"), "--builtin-schema", "custom.github-workflows-require-timeout", workflow)
    run(script("check-jsonschema"), "--builtin-schema", "vendor.github-workflows", workflow)


def test_prefect_knows_every_setting_that_is_given_to_it() -> None:
    from prefect.settings.legacy import _get_valid_setting_names
    from prefect.settings.models.root import Settings

    known = _get_valid_setting_names(Settings) | {"PREFECT_FLOW_RUN_EXECUTE_SIGTERM_BEHAVIOR"}  # read from os.environ
    texts = [path.read_text() for path in INFRA.rglob("*") if path.is_file()]
    named = {name for text in texts for name in re.findall(r"\bPREFECT_[A-Z_]+\b", text)}
    assert len(named) >= 5
    assert named <= known


@pytest.mark.parametrize("kind", ["aws", "kubernetes"])
def test_prefect_s_server_takes_the_job_template(kind: str) -> None:
    from prefect.server.schemas.actions import WorkPoolCreate
    from prefect.utilities.schema_tools import validate

    template = read(INFRA / kind / "job-template.json")
    WorkPoolCreate(name="forgeline-gpu", type=kind, base_job_template=template)
    given = {"image": "forgeline:1", "region": "us-east-1"}
    wanted = {name: given[name] for name in template["variables"]["required"]}
    properties = template["variables"]["properties"]
    defaults = {name: each["default"] for name, each in properties.items() if "default" in each}
    assert validate(wanted | defaults, template["variables"]) == []
    assert validate({}, template["variables"])  # a run that names no image is refused before it is started


def test_the_kubernetes_worker_makes_a_job_of_the_template_that_kubernetes_takes() -> None:
    from prefect.client.orchestration import PrefectClient
    from prefect.client.schemas.objects import FlowRun
    from prefect_kubernetes.worker import KubernetesWorkerJobConfiguration

    configuration = asyncio.run(
        KubernetesWorkerJobConfiguration.from_template_and_values(
            read(INFRA / "kubernetes" / "job-template.json"),
            {"image": "forgeline:1", "env": {"PREFECT_API_URL": "http://server/api"}},
            client=PrefectClient("http://127.0.0.1:1/api"),  # which has nothing to ask
        )
    )
    configuration.prepare_for_flow_run(FlowRun(name="night", flow_id=uuid.uuid4()))
    manifest = configuration.job_manifest
    pod = manifest["spec"]["template"]["spec"]
    # Prefect insists on these in a place where Kubernetes knows none, and ignores them.
    assert (pod.pop("parallelism"), pod.pop("completions")) == (1, 1)
    kubernetes_validate.validate(manifest, "1.34", strict=True)

    (container,) = pod["containers"]
    assert container["args"] == ["prefect", "flow-run", "execute"]
    environment = {each["name"]: each["value"] for each in container["env"]}
    assert environment["PREFECT_API_URL"] == "http://server/api"
    assert environment["PREFECT_FLOW_RUN_EXECUTE_SIGTERM_BEHAVIOR"] == "reschedule"  # a preempted run is queued again
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert pod["terminationGracePeriodSeconds"] == 120
    user = re.search(r"^USER (\d+):", (INFRA / "Dockerfile").read_text(), re.MULTILINE)
    assert user is not None
    assert pod["securityContext"]["runAsUser"] == int(user[1])


def test_workers_and_runs_have_one_prefect() -> None:
    """Prefect's chart is held against its own schema in .github/workflows/infra.yaml, where helm is."""
    values = read(INFRA / "kubernetes" / "worker.yaml")["worker"]
    assert values["image"]["prefectTag"].startswith(f"{version('prefect')}-")
    job = read(INFRA / "kubernetes" / "job-template.json")["job_configuration"]
    assert values["selfHostedServerApiConfig"]["apiUrl"].split("/")[2].split(".")[1] == job["namespace"]


def test_skypilot_takes_the_task() -> None:
    sky = pytest.importorskip("sky", reason="SkyPilot wants other versions of packages: .github/workflows/infra.yaml")
    config = read(INFRA / "skypilot.yaml")
    given = {name: "given" for section in ("envs", "secrets") for name in config[section]}
    secrets = [(name, "given") for name in config["secrets"]]
    task = sky.Task.from_yaml_config(
        config, env_overrides=[(name, given[name]) for name in config["envs"]], secrets_overrides=secrets
    )
    (resources,) = task.resources
    assert resources.use_spot
    assert resources.accelerators == {"L4": 1}
