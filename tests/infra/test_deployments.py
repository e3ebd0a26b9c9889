"""infra/prefect-image.yaml for real: a stage handed to a worker on which nothing of ours is installed.

The git remote is a bare repository, the DVC remote a folder, Prefect's server and its process worker are real. What the
image has, all packages and none of our code, the worker has here too: its Python finds the packages of this one, but
not the links to this clone.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound
from prefect.settings import PREFECT_API_URL, PREFECT_HOME, temporary_settings
from processes import kill_all

from flows.graph import read_stages
from flows.handover import hand_over
from flows.server import temporary_server
from pipeline.running import REMOTE_DEPLOYMENT, REMOTE_POOL

ROOT = Path(__file__).parents[2]
STAGES = """stages:
  given: {cmd: echo given > given.txt, outs: [given.txt]}
  made:
    cmd: python -c "import pipeline; print(pipeline.__path__[0])" > made.txt && forgeline --help >> made.txt
    deps: [given.txt]
    outs: [made.txt]
"""


def run(folder: Path, *words: str) -> str:
    ended = subprocess.run(words, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert ended.returncode == 0, ended.stdout
    return ended.stdout


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    home = tmp_path_factory.mktemp("prefect")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFECT_HOME", str(home))
        with temporary_server() as started:
            url = started()
            patch.setenv("PREFECT_API_URL", url)
            with temporary_settings({PREFECT_API_URL: url, PREFECT_HOME: home}):
                yield url


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Our code with one small stage more, pushed to a bare `origin` as the branch `release`."""
    tmp_path = tmp_path_factory.mktemp("remotes")
    folder = tmp_path / "clone"
    folder.mkdir()
    for name in ("pipeline", "flows", "infra"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "dvc.yaml").write_text(STAGES)
    (folder / "params.yaml").write_text("publish: {url: null, name: toy}\n")
    for words in (
        ["git", "init", "--quiet", "--initial-branch=release"],
        ["git", "init", "--quiet", "--bare", str(tmp_path / "origin.git")],
        ["git", "remote", "add", "origin", str(tmp_path / "origin.git")],
        [sys.executable, "-m", "dvc", "init", "--quiet"],
        [sys.executable, "-m", "dvc", "remote", "add", "--quiet", "--default", "store", str(tmp_path / "store")],
        [sys.executable, "-m", "dvc", "repro", "--quiet", "given"],
        ["git", "add", "--all"],
        ["git", "-c", "user.name=t", "-c", "user.email=t@t", "commit", "--quiet", "--message", "t"],
        ["git", "push", "--quiet", "origin", "release"],
    ):
        run(folder, *words)
    return folder


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """As in the image: a Python with all packages but ours, and `forgeline` as that of the folder where one stands."""
    run(tmp_path, sys.executable, "-m", "venv", "--without-pip", "bare")
    (packages,) = (tmp_path / "bare/lib").glob("python3.*/site-packages")
    installed = Path(psutil.__file__).parents[1]
    (packages / "packages.pth").write_text(f"{installed}\n")  # whose own .pth files are not read
    forgeline = tmp_path / "bare/bin/forgeline"
    forgeline.write_text('#!/bin/sh\nexec python -m pipeline "$@"\n')
    forgeline.chmod(0o755)
    return tmp_path / "bare/bin/python"


def deploy(clone: Path) -> str:
    words = ["--no-prompt", "deploy", "--prefect-file", "infra/prefect-image.yaml", "--all"]
    return run(clone, sys.executable, "-m", "prefect", *words)


def blocks() -> list[str]:
    """What docs/infrastructure.md says makes the pool and its deployment, one block of commands for each type."""
    found = re.findall(
        r"(prefect work-pool create .*\nprefect deploy .*)\n", (ROOT / "docs/infrastructure.md").read_text()
    )
    assert len(found) == 5
    return [str(each) for each in found]


@pytest.mark.parametrize("commands", blocks(), ids=lambda text: text.split()[5] + text.split()[-1])
def test_the_commands_of_the_documentation_make_pool_and_deployment(server: str, clone: Path, commands: str) -> None:
    with get_client(sync_client=True) as client:
        with suppress(ObjectNotFound):
            client.delete_work_pool(REMOTE_POOL)
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        run(clone, "env", f"PATH={path}", "sh", "-ec", commands.replace("prefect ", "prefect --no-prompt "))
        pool = client.read_work_pool(REMOTE_POOL)
        deployment = client.read_deployment_by_name(REMOTE_DEPLOYMENT)
    kind = commands.split()[5]
    assert pool.type == kind
    assert deployment.work_pool_name == REMOTE_POOL
    assert set(pool.base_job_template["variables"].get("required", [])) <= set(deployment.job_variables)
    if "prefect-image" in commands:
        assert deployment.pull_steps == [
            {
                "prefect.deployments.steps.git_clone": {
                    "repository": run(clone, "git", "remote", "get-url", "origin").strip(),
                    "branch": "release",
                }
            }
        ]


def test_a_password_in_the_address_of_origin_goes_nowhere(server: str, clone: Path) -> None:
    address = run(clone, "git", "remote", "get-url", "origin").strip()
    run(clone, "git", "remote", "set-url", "origin", "https://me:marked-password@localhost/x.git")
    try:
        with get_client(sync_client=True) as client:
            with suppress(ObjectAlreadyExists):
                client.create_work_pool(WorkPoolCreate(name=REMOTE_POOL, type="process"))
            assert "marked-password" not in deploy(clone)
            steps = client.read_deployment_by_name(REMOTE_DEPLOYMENT).pull_steps
    finally:
        run(clone, "git", "remote", "set-url", "origin", address)
    assert steps == [
        {"prefect.deployments.steps.git_clone": {"repository": "https://localhost/x.git", "branch": "release"}}
    ]


def test_a_machine_that_has_none_of_our_code_clones_it_and_runs_the_stage(
    server: str, clone: Path, python: Path, tmp_path: Path
) -> None:
    bare = subprocess.run([python, "-c", "import flows"], cwd=tmp_path, capture_output=True, text=True)
    assert "No module named 'flows'" in bare.stderr
    with get_client(sync_client=True) as client:
        with suppress(ObjectNotFound):
            client.delete_work_pool(REMOTE_POOL)
        client.create_work_pool(WorkPoolCreate(name=REMOTE_POOL, type="process"))
    deploy(clone)
    _, stage = read_stages(clone)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {
        "PATH": os.pathsep.join([str(python.parent), os.environ["PATH"]]),
        "FORGELINE_CACHE": str(elsewhere / "cache"),
        "PREFECT_HOME": str(elsewhere / "prefect"),
        "PREFECT_WORKER_QUERY_SECONDS": "1",
    }
    command = [python, "-m", "prefect", "worker", "start", "--pool", REMOTE_POOL]
    with (elsewhere / "log").open("wb") as log:
        worker = psutil.Popen(command, cwd=elsewhere, env=environment, stdout=log, stderr=log)
    try:
        assert hand_over(stage, clone, "[2/2] made", lambda _: None).outcome == "ran"
    finally:
        kill_all(worker)
    where, said = (clone / "made.txt").read_text().split("\n", 1)
    assert where.startswith(str(elsewhere / "cache"))  # the code of the commit that was handed over
    assert "Usage:" in said
