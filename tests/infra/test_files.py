"""The other files of infra/ and the workflows, each held against the schema or the model of the tool that reads it.

None of them is run here: no image is built, no container, cluster or virtual machine is started.
"""

from __future__ import annotations

import asyncio
import json
import os
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


def test_git_in_the_image_gives_the_token_of_the_environment_to_a_remote_that_asks(tmp_path: Path) -> None:
    """The line of the Dockerfile, by a shell, and what git then makes of it."""
    found = re.search(r"git config --system (credential\.helper \\\n.*) \\\n", (INFRA / "Dockerfile").read_text())
    assert found is not None
    subprocess.run(["sh", "-c", f"git config --file config {found[1]}"], cwd=tmp_path, check=True)
    nobody = {"GIT_TERMINAL_PROMPT": "0", "HOME": str(tmp_path), "PATH": os.environ["PATH"]}

    def filled(**given: str) -> subprocess.CompletedProcess[str]:
        environment = nobody | {"GIT_CONFIG_SYSTEM": str(tmp_path / "config")} | given
        asked = "protocol=https\nhost=example.org\n\n"
        return subprocess.run(
            ["git", "credential", "fill"], input=asked, env=environment, cwd=tmp_path, capture_output=True, text=True
        )

    assert filled(GIT_TOKEN="marked+token").stdout.splitlines()[-2:] == ["username=git", "password=marked+token"]
    assert filled().returncode  # asks, where nobody can answer, and does not try an empty one


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


@pytest.mark.parametrize("kind", ["aws", "docker", "kubernetes"])
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


def test_the_docker_worker_makes_a_container_of_the_template_that_docker_s_client_takes() -> None:
    """As far as it goes without a daemon: to the body of the request that would create it."""
    from docker.models.containers import _create_container_args
    from docker.types import ContainerConfig
    from prefect.client.orchestration import PrefectClient
    from prefect.client.schemas.objects import FlowRun
    from prefect_docker.worker import DockerWorker, DockerWorkerJobConfiguration

    configuration = asyncio.run(
        DockerWorkerJobConfiguration.from_template_and_values(
            read(INFRA / "docker" / "job-template.json"),
            {
                "image": "forgeline:1",
                "gpus": 2,
                "volumes": ["/home/me/.aws:/home/forgeline/.aws:ro"],
                "env": {"PREFECT_API_URL": "http://server/api"},
            },
            client=PrefectClient("http://127.0.0.1:1/api"),  # which has nothing to ask
        )
    )
    configuration.prepare_for_flow_run(FlowRun(name="night", flow_id=uuid.uuid4()))
    settings = DockerWorker(work_pool_name="forgeline-gpu")._build_container_settings(None, configuration)
    arguments = _create_container_args(settings | {"version": "1.44"})
    host = arguments.pop("host_config")
    arguments.pop("networking_config", None)
    body = ContainerConfig(
        "1.44",
        arguments.pop("image"),
        arguments.pop("command"),
        host_config=host,
        **{key: value for key, value in arguments.items() if key not in ("name", "version")},
    )
    assert body["Image"] == "forgeline:1"
    assert body["Cmd"] == ["prefect", "flow-run", "execute"]
    assert {"PREFECT_API_URL=http://server/api", "PREFECT_FLOW_RUN_EXECUTE_SIGTERM_BEHAVIOR=reschedule"} <= set(
        body["Env"]
    )
    (gpus,) = host["DeviceRequests"]
    assert (gpus["Count"], gpus["Capabilities"]) == (2, [["gpu"]])
    assert (host["ShmSize"], host["CapDrop"], host["AutoRemove"]) == (2 * 2**30, ["ALL"], True)
    assert host["Binds"] == ["/home/me/.aws:/home/forgeline/.aws:ro"]


def test_workers_and_runs_have_one_prefect() -> None:
    """Prefect's chart is held against its own schema in .github/workflows/infra.yaml, where helm is."""
    values = read(INFRA / "kubernetes" / "worker.yaml")["worker"]
    assert values["image"]["prefectTag"].startswith(f"{version('prefect')}-")
    job = read(INFRA / "kubernetes" / "job-template.json")["job_configuration"]
    assert values["selfHostedServerApiConfig"]["apiUrl"].split("/")[2].split(".")[1] == job["namespace"]


def test_what_skypilot_is_given_reaches_the_container() -> None:
    config = read(INFRA / "skypilot.yaml")
    named = {"PREFECT_API_URL", *config["secrets"]}
    assert named >= {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "GIT_TOKEN"}
    assert named <= set(re.findall(r"--env (\w+)(?!=)\b", config["run"]))


def test_skypilot_takes_the_task() -> None:
    sky = pytest.importorskip("sky", reason="SkyPilot wants other versions of packages: .github/workflows/infra.yaml")
    config = read(INFRA / "skypilot.yaml")
    given = {name: "given" for section in ("envs", "secrets") for name in config[section]}
    secrets = [(name, "given") for name in config["secrets"] if name != "GIT_TOKEN"]  # for a public repository
    task = sky.Task.from_yaml_config(
        config, env_overrides=[(name, given[name]) for name in config["envs"]], secrets_overrides=secrets
    )
    (resources,) = task.resources
    assert resources.use_spot
    assert resources.accelerators == {"L4": 1}
