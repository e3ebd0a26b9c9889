"""`train` handed to another machine for real: a Prefect server, process workers, a bare git repository, an S3 server.

Each worker is a machine of its own: it has its own cache, and shares nothing with the parent but the two remotes. The
tests share one project, the digits recipe with small budgets.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from contextvars import copy_context
from pathlib import Path

import boto3
import psutil
import pytest
import servers
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.exceptions import ObjectNotFound
from processes import kill_all
from ruamel.yaml import YAML

from flows import handover
from flows.graph import Stage, read_stages
from flows.handover import hand_over
from flows.repro import StageRun
from pipeline.delivery.stores import Access, open_store
from pipeline.errors import FailedError, UserError
from pipeline.running import REMOTE_POOL

ROOT = Path(__file__).parents[2]
PATIENCE_SECONDS = 600  # on a busy machine
LEASE_SECONDS = 8.0
MACHINE = "the machine of the worker first"
LOST = f"    {MACHINE} is lost; the next one goes on from what it mirrored"
TOLD = f"    {MACHINE} was told to end; the next one goes on from what it left"


class Project:
    """A clone with a git remote and a DVC remote, where all that `train` needs has been made."""

    def __init__(self, root: Path, environment: dict[str, str]) -> None:
        self.root, self.environment = root, environment

    def run(self, *words: str) -> str:
        ended = subprocess.run(words, cwd=self.root, env=self.environment, capture_output=True, text=True)
        assert ended.returncode == 0, ended.stdout + ended.stderr
        return ended.stdout

    def set(self, **train: object) -> None:
        yaml, path = YAML(), self.root / "params.yaml"
        document = yaml.load(path)
        document["train"].update(train)
        yaml.dump(document, path)

    def hand_over(self, say: Callable[[str], None]) -> StageRun:
        (stage,) = (stage for stage in read_stages(self.root) if stage.name == "train")
        return hand_over(stage, self.root, "[5/10] train", say, LEASE_SECONDS)

    def model(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in (self.root / "out/model").iterdir()}

    def made_here(self) -> dict[str, bytes]:
        """The model as this machine makes it, which then forgets that it did."""
        self.run("forgeline", "stage", "train")
        made = self.model()
        for name in ("model", "training"):
            shutil.rmtree(self.root / "out" / name)
        return made


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    with servers.s3_server() as url:
        yield url


@pytest.fixture(scope="module")
def project(s3: str, prefect_server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    folder = tmp_path_factory.mktemp("handed")
    environment = {
        "AWS_ENDPOINT_URL_S3": s3,
        "AWS_ACCESS_KEY_ID": servers.KEY,
        "AWS_SECRET_ACCESS_KEY": servers.SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
        "FORGELINE_CACHE": str(folder / "cache"),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        root = folder / "clone"
        root.mkdir()
        made = Project(root, dict(os.environ) | {"PYTHONPATH": str(root)})
        for name in ("dvc.yaml", "params.yaml", ".dvcignore", ".gitignore"):
            shutil.copy(ROOT / name, root / name)
        for name in ("pipeline", "flows"):
            shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
        subprocess.run(["git", "init", "--quiet", "--bare", str(folder / "remote.git")], check=True)
        made.run("git", "init", "--quiet")
        made.run("git", "remote", "add", "origin", str(folder / "remote.git"))
        made.run("dvc", "init", "--quiet")
        made.run("dvc", "remote", "add", "--default", "store", "s3://bucket/dvc")
        made.run("dvc", "remote", "modify", "store", "endpointurl", s3)
        boto3.client("s3").create_bucket(Bucket="bucket")
        yaml, path = YAML(), root / "params.yaml"
        document = yaml.load(path)
        document["features"]["images_seen"] = 2000
        document["train"] |= {"images": 40_000, "snapshot_images": 20_000}
        yaml.dump(document, path)
        made.run("git", "add", "-A")
        made.run("git", "-c", "user.name=t", "-c", "user.email=t@t", "commit", "--quiet", "-m", "t")
        made.run("dvc", "repro", "--quiet", "features", "parent")
        with get_client(sync_client=True) as client:
            with suppress(ObjectNotFound):
                client.delete_work_pool(REMOTE_POOL)
            client.create_work_pool(WorkPoolCreate(name=REMOTE_POOL, type="process"))
        command = ["deploy", "--prefect-file", "infra/prefect-remote.yaml", "--all"]
        subprocess.run(
            [sys.executable, "-m", "prefect", *command],
            cwd=ROOT,
            env=dict(os.environ) | {"PREFECT_API_URL": prefect_server},
            check=True,
            capture_output=True,
        )
        yield made


@contextmanager
def machine(folder: Path, prefect_server: str, environment: Mapping[str, str] = {}) -> Iterator[psutil.Process]:
    """A worker, with a cache and a folder of its own, which vanishes at the end of the block."""
    folder.mkdir()
    with (folder / "log").open("wb") as log:
        worker = psutil.Popen(
            [sys.executable, "-m", "flows.work", "--pool", REMOTE_POOL, "--name", folder.name],
            cwd=folder,
            env=dict(os.environ)
            | {
                "PREFECT_API_URL": prefect_server,
                "FORGELINE_CACHE": str(folder / "cache"),
                "PYTHONPATH": str(ROOT),
                "PREFECT_WORKER_QUERY_SECONDS": "1",
            }
            | dict(environment),
            stdout=log,
            stderr=log,
        )
        try:
            yield worker
        finally:
            kill_all(worker)


def test_the_outputs_of_another_machine_come_back_as_if_made_here(
    project: Project, prefect_server: str, tmp_path: Path
) -> None:
    expected = project.made_here()
    said: list[str] = []
    with machine(tmp_path / "one", prefect_server):
        assert project.hand_over(said.append).outcome == "ran"
    assert project.model() == expected
    assert said[0] == "[5/10] train"
    assert said[1].startswith(f"    handed to the work pool '{REMOTE_POOL}' as ")
    assert any(line.startswith("    train: kept the generator of ") for line in said)
    assert project.run("dvc", "status", "train").strip().endswith("up to date.")
    assert project.run("git", "ls-remote", "origin", "refs/forgeline/*") == ""
    assert project.hand_over(said.append).outcome == "unchanged"
    shutil.rmtree(project.root / "out/model")
    shutil.rmtree(project.root / ".dvc/cache/files")  # nor is anything handed over that the remote has
    assert project.hand_over(said.append).outcome == "restored"
    assert project.model() == expected
    project.run("dvc", "pull", "--quiet", "features", "parent")


def test_a_machine_that_vanishes_is_noticed_and_another_goes_on(
    project: Project, prefect_server: str, tmp_path: Path
) -> None:
    project.set(images=400_000, snapshot_images=100_000)
    said: list[str] = []
    with ThreadPoolExecutor(1) as pool:
        with machine(tmp_path / "first", prefect_server):
            handed = pool.submit(copy_context().run, project.hand_over, said.append)  # with Prefect's settings of now
            wait_for(mirrored, handed.done)
        with machine(tmp_path / "second", prefect_server):
            assert handed.result(PATIENCE_SECONDS).outcome == "ran"
    assert said.count(LOST) == 1
    assert "    goes on from the state that was mirrored" in said
    assert any(line.startswith("    train: goes on from the checkpoint at ") for line in said)
    check_made_as_undisturbed(project)


# The program of a run hangs before it is one, or git does when it clones.
HANGS = {
    "sitecustomize.py": 'import os, pathlib, time\nif "PREFECT__FLOW_RUN_ID" in os.environ:\n    {hang}\n',
    "git": "#!{python}\nimport pathlib, time\n{hang}\n",
}


@pytest.mark.parametrize("name", HANGS)
def test_a_machine_that_vanishes_before_it_has_begun_is_noticed_too(
    project: Project, prefect_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    project.set(images=20_000, snapshot_images=20_000, seed=4 + list(HANGS).index(name))
    hanging, bin_folder = tmp_path / "hanging", tmp_path / "bin"
    bin_folder.mkdir()
    hang = f"pathlib.Path({str(hanging)!r}).touch(); time.sleep(3600)"
    (bin_folder / name).write_text(HANGS[name].format(python=sys.executable, hang=hang))
    (bin_folder / name).chmod(0o755)
    environment = {
        "PATH": os.pathsep.join([str(bin_folder), os.environ["PATH"]]),
        "PYTHONPATH": os.pathsep.join([str(bin_folder), str(ROOT)]),
    }
    monkeypatch.setattr(handover, "_START_SECONDS", LEASE_SECONDS)
    said: list[str] = []

    def say(line: str) -> None:
        said.append(line)
        if line == LOST:
            monkeypatch.undo()  # the next may take the time that it needs

    with ThreadPoolExecutor(1) as pool:
        with machine(tmp_path / "first", prefect_server, environment):
            handed = pool.submit(copy_context().run, project.hand_over, say)
            wait_for(hanging.exists, handed.done)
        with machine(tmp_path / "second", prefect_server):
            assert handed.result(PATIENCE_SECONDS).outcome == "ran"
    assert said.count(LOST) == 1


def test_when_as_many_machines_as_may_be_are_lost_the_run_gives_up(
    project: Project, prefect_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handover, "_MACHINES", 1)
    project.set(images=400_000, snapshot_images=100_000, seed=12)
    with ThreadPoolExecutor(1) as pool:
        with machine(tmp_path / "first", prefect_server):
            handed = pool.submit(copy_context().run, project.hand_over, lambda _: None)
            wait_for(mirrored, handed.done)
        with pytest.raises(FailedError, match=rf"^stage 'train': 1 machines of {REMOTE_POOL} were lost: {MACHINE}$"):
            handed.result(PATIENCE_SECONDS)
    for key in copies():
        boto3.client("s3").delete_object(Bucket="bucket", Key=key)


def test_a_machine_that_is_told_to_end_leaves_its_last_checkpoint_to_the_next(
    project: Project, prefect_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handover, "_MACHINES", 1)  # and is none of those that may be lost
    project.set(images=400_000, snapshot_images=100_000, seed=3)
    said: list[str] = []
    with ThreadPoolExecutor(1) as pool:
        with machine(tmp_path / "first", prefect_server) as worker:
            handed = pool.submit(copy_context().run, project.hand_over, said.append)
            wait_for(mirrored, handed.done)
            worker.terminate()
            assert worker.wait(PATIENCE_SECONDS) == 0
        with machine(tmp_path / "second", prefect_server):
            assert handed.result(PATIENCE_SECONDS).outcome == "ran"
    assert not any("has been silent" in line for line in said)  # the lease was given back
    assert (said.count(TOLD), said.count(LOST)) == (1, 0)
    assert "    goes on from the state that was mirrored" in said
    check_made_as_undisturbed(project)


@pytest.mark.parametrize("fault", [503, "drop"])
def test_a_store_that_is_away_for_a_while_ends_no_run(
    project: Project,
    s3: str,
    prefect_server: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fault: int | str,
) -> None:
    """For this machine only, whose looks fail with all their retries; the other one works on."""
    project.set(images=400_000, snapshot_images=100_000, seed=10 if fault == "drop" else 11)
    said, failed = list[str](), list[str]()

    def away(number: int, method: str, path: str, headers: dict[str, str]) -> int | str | None:
        if not path.endswith("/lease.json") or len(failed) == 6 or not mirrored():
            return None
        failed.append(path)
        return fault

    with servers.Proxy(s3).serving() as proxy, machine(tmp_path / "one", prefect_server):
        proxy.fault = away
        through = open_store("s3://bucket/dvc/state", Access(endpoint_url=proxy.url))
        monkeypatch.setattr(handover, "state_store", lambda workspace: through)
        assert project.hand_over(said.append).outcome == "ran"
    assert len(failed) == 6
    assert [line.partition(": ")[0] for line in said if "cannot be read" in line] == [
        "    the lease of that machine cannot be read at the moment"
    ]
    assert not any("is lost" in line for line in said)


def check_made_as_undisturbed(project: Project) -> None:
    found = project.model()
    project.run("dvc", "repro", "--quiet", "--force", "--single-item", "--no-commit", "train")
    assert project.model() == found
    assert not mirrored()


def mirrored() -> bool:
    """Whether there is a copy of a state in the store."""
    return bool(copies())


def copies() -> list[str]:
    found = boto3.client("s3").list_objects_v2(Bucket="bucket", Prefix="dvc/state/").get("Contents", [])
    return [each["Key"] for each in found if each["Key"].endswith(".tar")]


def wait_for(true: Callable[[], bool], over: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not true():
        assert not over()
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_what_the_other_machine_refuses_is_told_here(project: Project, prefect_server: str, tmp_path: Path) -> None:
    project.set(batch_size=1)
    try:
        with (
            machine(tmp_path / "one", prefect_server),
            pytest.raises(
                FailedError, match=r"^stage 'train' in the work pool 'forgeline-gpu': params\.yaml: .*size is 1; needed"
            ),
        ):
            project.hand_over(lambda _: None)
    finally:
        project.set(batch_size=128)


def test_uncommitted_code_is_not_handed_over(project: Project) -> None:
    project.set(seed=7)
    changed = project.root / "pipeline/paths.py"
    before = changed.read_text()
    changed.write_text(before + "# changed\n")
    try:
        with pytest.raises(UserError, match=r"^pipeline/paths.py: has uncommitted changes; needed a commit of them"):
            project.hand_over(lambda _: None)
    finally:
        changed.write_text(before)


Workspace = Callable[[str], Path]


@pytest.fixture
def small(workspace: Workspace, tmp_path: Path) -> Workspace:
    """A clone with these stages, a git remote and a DVC remote in folders, and data that only DVC tracks."""

    def make(stages: str) -> Path:
        folder = workspace(stages)
        (folder / "data").mkdir()
        (folder / "data/one.txt").write_text("one\n")
        for words in (
            ["git", "init", "--quiet", "--bare", str(tmp_path / "git")],
            ["git", "remote", "add", "origin", str(tmp_path / "git")],
            ["dvc", "remote", "add", "--quiet", "--default", "store", str(tmp_path / "dvc")],
            ["dvc", "add", "--quiet", "data"],
            ["git", "add", "-A"],
            ["git", "-c", "user.name=t", "-c", "user.email=t@t", "commit", "--quiet", "-m", "t"],
        ):
            subprocess.run(python(words), cwd=folder, check=True)
        return folder

    return make


def python(words: list[str]) -> list[str]:
    return [sys.executable, "-m", *words] if words[0] == "dvc" else words


def only_stage(folder: Path) -> Stage:
    (stage,) = read_stages(folder)
    return stage


def test_what_dvc_tracks_is_pushed_too_and_an_interrupted_hand_over_leaves_no_reference(
    small: Workspace, tmp_path: Path
) -> None:
    folder = small("  one: {cmd: cp data/one.txt one.txt, deps: [data/one.txt], outs: [one.txt]}\n")

    def references() -> str:
        words = ["git", "ls-remote", "origin", "refs/forgeline/*"]
        return subprocess.run(words, cwd=folder, check=True, capture_output=True, text=True).stdout

    def say(line: str) -> None:
        assert references()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        hand_over(only_stage(folder), folder, "[1/1] one", say)
    assert references() == ""
    shutil.rmtree(folder / ".dvc/cache")
    shutil.rmtree(folder / "data")
    subprocess.run([sys.executable, "-m", "dvc", "pull", "--quiet", "data"], cwd=folder, check=True)
    assert (folder / "data/one.txt").read_text() == "one\n"


@pytest.mark.parametrize(
    "stage",
    [
        "{cmd: echo one > one.txt, outs: [one.txt]}",
        "{cmd: cp data/one.txt one.txt, deps: [data/one.txt], outs: [one.txt], always_changed: true}",
        "{cmd: cp data/one.txt one.txt, deps: [data/one.txt], outs: [one.txt: {persist: true}]}",
    ],
)
def test_a_stage_whose_outputs_would_not_come_back_is_refused(small: Workspace, stage: str) -> None:
    folder = small(f"  one: {stage}\n")
    with pytest.raises(UserError, match=r"^params.yaml: run.remote_stages names one, whose outputs .* not come back; "):
        hand_over(only_stage(folder), folder, "[1/1] one", lambda _: None)


@pytest.mark.parametrize(
    ("secret", "said"),
    [
        ("https://me:marked@host/set.zip", "https://***@host/set.zip"),
        ("https://host/set.zip?X-Amz-Signature=marked", "https://host/set.zip?***"),
    ],
)
def test_credentials_in_params_yaml_are_not_handed_over(small: Workspace, secret: str, said: str) -> None:
    folder = small("  one: {cmd: cp data/one.txt one.txt, deps: [data/one.txt], outs: [one.txt]}\n")
    (folder / "params.yaml").write_text(f"own:\n  sets:\n  - s3://bucket/a@b\n  - {secret}\n")
    with pytest.raises(UserError) as caught:
        hand_over(only_stage(folder), folder, "[1/1] one", lambda _: None)
    assert str(caught.value) == (
        f"{folder}/params.yaml: own.sets[1] is '{said}', and run.remote_stages hands it to other machines; needed a "
        "URL without a user and a query, and the credentials in the environment"
    )


def test_a_store_that_ignores_conditions_is_refused(project: Project, s3: str, small: Workspace) -> None:
    if servers.is_ceph():
        pytest.skip("a server that does not check signatures is needed, as moto's")
    folder = small("  one: {cmd: cp data/one.txt one.txt, deps: [data/one.txt], outs: [one.txt]}\n")

    def ignore(number: int, method: str, path: str, headers: dict[str, str]) -> None:
        for name in ("if-match", "if-none-match"):
            headers.pop(name, None)

    with servers.Proxy(s3).serving() as proxy:
        proxy.fault = ignore
        for words in (["url", "s3://bucket/small"], ["endpointurl", proxy.url]):
            command = [sys.executable, "-m", "dvc", "remote", "modify", "--quiet", "--local", "store", *words]
            subprocess.run(command, cwd=folder, check=True)
        with pytest.raises(UserError, match=r"^s3://bucket/small/state: ignores conditional writes, .*; needed a DVC "):
            hand_over(only_stage(folder), folder, "[1/1] one", lambda _: None)


def test_where_no_stage_has_run_yet_none_is_in_the_lock_that_is_handed_over(
    project: Project, small: Workspace, prefect_server: str, tmp_path: Path
) -> None:
    folder = small("  one: {cmd: cp data/one.txt one.txt, deps: [data/one.txt], outs: [one.txt]}\n")
    assert not (folder / "dvc.lock").exists()
    with machine(tmp_path / "one", prefect_server):
        assert hand_over(only_stage(folder), folder, "[1/1] one", lambda _: None, LEASE_SECONDS).outcome == "ran"
    assert (folder / "one.txt").read_text() == "one\n"
    assert "one.txt" in (folder / "dvc.lock").read_text()


def test_without_the_deployment_it_says_how_to_make_it(project: Project) -> None:
    project.set(seed=8)
    with get_client(sync_client=True) as client:
        deployment = client.read_deployment_by_name("elsewhere/stage")
        client.delete_deployment(deployment.id)
    with pytest.raises(UserError, match=r"needed the deployment 'elsewhere/stage' on the server .*: 'prefect deploy "):
        project.hand_over(lambda _: None)
