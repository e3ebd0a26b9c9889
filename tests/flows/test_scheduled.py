"""Scheduled runs on a real Prefect server, in a clone of a bare repository, with a DVC remote on a real S3 server."""

from __future__ import annotations

import logging
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
import servers
from prefect.client.schemas.objects import State

import pipeline
from flows.retrain import retrain
from pipeline.errors import ForgelineError

STAGES = """stages:
  probe: {cmd: ls data > list.txt && echo key $AWS_SECRET_ACCESS_KEY, outs: [list.txt], always_changed: true}
  copy: {cmd: cp list.txt copy.txt, deps: [list.txt], params: [copy], outs: [copy.txt]}
"""
PARAMS = """publish: {url: null, name: toy}
source: {url: data}
copy: 1
run: {branch: main, record: forgeline/nightly}
"""


class Clone:
    """A clone of the bare repository `origin`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def run(self, *words: str) -> str:
        command = [sys.executable, "-m", *words] if words[0] == "dvc" else list(words)
        ended = subprocess.run(command, cwd=self.folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert ended.returncode == 0, ended.stdout
        return ended.stdout.strip()

    def commit(self, message: str) -> None:
        self.run("git", "add", "--all")
        self.run("git", "-c", "user.name=t", "-c", "user.email=t@t", "commit", "--quiet", "--message", message)
        self.run("git", "push", "--quiet", "origin", "HEAD:main")

    def tip(self, branch: str = "forgeline/nightly") -> str:
        """What the bare repository has."""
        return self.run("git", "ls-remote", "origin", f"refs/heads/{branch}").partition("\t")[0]

    def retrain(self) -> State[Any]:
        state: State[Any] = retrain(self.folder, scheduled=True, return_state=True)
        return state

    def left_behind(self) -> list[str]:
        return [path.name for path in (self.folder / ".dvc/tmp/forgeline/runs").iterdir()]


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An S3 server, marked credentials for it, and a git that knows no user; the URL of a bucket for DVC."""
    home = tmp_path_factory.mktemp("home")
    with servers.s3_server() as url, pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "AWS_ENDPOINT_URL_S3": url,
            "AWS_ENDPOINT_URL": url,
            "AWS_ACCESS_KEY_ID": servers.KEY,
            "AWS_SECRET_ACCESS_KEY": servers.SECRET,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
            "HOME": str(home),
        }.items():
            patch.setenv(name, value)
        patch.delenv("AWS_PROFILE", raising=False)
        boto3.session.Session().client("s3").create_bucket(Bucket="dvc")
        yield "s3://dvc/store"


@pytest.fixture(scope="module")
def clone(empty_repository: Path, environment: str, tmp_path_factory: pytest.TempPathFactory) -> Clone:
    root = tmp_path_factory.mktemp("scheduled")
    subprocess.run(["git", "init", "--quiet", "--bare", "--initial-branch=main", root / "origin"], check=True)
    shutil.copytree(empty_repository, root / "clone")
    found = Clone(root / "clone")
    found.run("git", "remote", "add", "origin", str(root / "origin"))
    found.run("dvc", "remote", "add", "--default", "store", environment)
    (found.folder / "dvc.yaml").write_text(STAGES)
    (found.folder / "params.yaml").write_text(PARAMS)
    (found.folder / ".gitignore").write_text("/data\n/list.txt\n/copy.txt\n")
    (found.folder / "data").mkdir()
    (found.folder / "data/a.png").write_text("a")
    found.commit("begin")
    return found


def test_the_first_run_records_what_it_made_from_the_head_of_the_branch(clone: Clone, prefect_server: str) -> None:
    (clone.folder / "params.yaml").write_text(PARAMS + "# not committed\n")
    state = clone.retrain()
    assert [(run.stage, run.outcome) for run in state.result().stages] == [("probe", "ran"), ("copy", "ran")]
    clone.run("git", "fetch", "--quiet")
    files = clone.run("git", "ls-tree", "--name-only", clone.tip()).splitlines()
    assert {"dvc.lock", "params.yaml", "dvc.yaml"} <= set(files)
    assert clone.run("git", "show", f"{clone.tip()}:params.yaml") == PARAMS.strip()
    assert clone.run("git", "rev-parse", f"{clone.tip()}^") == clone.tip("main")
    assert re.search(r"^ *Forgeline-Run: \S+ [0-9a-f-]{36}$", clone.run("git", "show", clone.tip()), re.MULTILINE)
    assert clone.left_behind() == []
    assert not (clone.folder / "copy.txt").exists()
    assert len(clone.run("git", "worktree", "list").splitlines()) == 1


def test_a_run_without_news_ends_as_such_and_leaves_nothing(clone: Clone, prefect_server: str) -> None:
    before = clone.tip()
    state = clone.retrain()
    assert (state.name, state.is_completed()) == ("Nothing new", True)
    assert [run.stage for run in state.result().stages] == ["probe"]
    assert clone.tip() == before
    assert clone.left_behind() == []


def test_in_a_later_clone_the_record_has_nothing_left_to_do(clone: Clone, environment: str, tmp_path: Path) -> None:
    origin = clone.run("git", "remote", "get-url", "origin")
    subprocess.run(["git", "clone", "--quiet", "--branch", "forgeline/nightly", origin, tmp_path / "later"], check=True)
    later = Clone(tmp_path / "later")
    shutil.copytree(clone.folder / "data", later.folder / "data")
    later.run("dvc", "pull", "--quiet")
    assert (later.folder / "copy.txt").read_text() == "a.png\n"
    assert re.findall(r"^Running stage '(.*)'", later.run("dvc", "repro"), re.MULTILINE) == ["probe"]
    assert later.run("git", "status", "--porcelain", "--untracked-files=no") == ""


def test_new_data_and_a_new_commit_are_news_each_recorded_upon_the_last(clone: Clone, prefect_server: str) -> None:
    first = clone.tip()
    (clone.folder / "data/b.png").write_text("b")
    assert [run.outcome for run in clone.retrain().result().stages] == ["ran", "ran"]
    second = clone.tip()
    clone.run("git", "fetch", "--quiet")
    assert clone.run("git", "rev-parse", f"{second}^") == first
    (clone.folder / "params.yaml").write_text(PARAMS.replace("copy: 1", "copy: 2"))
    clone.commit("another setting")
    assert clone.retrain().name == "Completed"
    clone.run("git", "fetch", "--quiet")
    assert clone.run("git", "rev-parse", f"{clone.tip()}^1", f"{clone.tip()}^2").split() == [second, clone.tip("main")]


def test_another_place_to_publish_to_is_news_though_no_stage_runs(clone: Clone, prefect_server: str) -> None:
    before = clone.tip()
    params = (clone.folder / "params.yaml").read_text().replace("name: toy", "name: other")
    (clone.folder / "params.yaml").write_text(params)
    clone.commit("another name")
    state = clone.retrain()
    assert (state.name, [run.outcome for run in state.result().stages]) == ("Completed", ["ran", "unchanged"])
    assert clone.tip() != before
    assert clone.retrain().name == "Nothing new"


def test_settings_of_later_stages_are_read_by_the_code_of_the_branch(clone: Clone, prefect_server: str) -> None:
    """Which knows other settings than that of the worker: here one that is good for nothing else."""
    own, before = clone.folder / "pipeline", (clone.folder / "params.yaml").read_text()
    own.mkdir()
    for name in ("__init__.py", "errors.py"):
        shutil.copy(Path(pipeline.__file__).with_name(name), own / name)
    (own / "doctor.py").write_text(
        "from pipeline.errors import UserError\n"
        "def read_all_params(folder):\n"
        "    raise UserError((folder / 'params.yaml').read_text().splitlines()[-1])\n"
    )
    (clone.folder / "params.yaml").write_text(before + "# copy.size is 0; needed at least 1\n")
    (clone.folder / "data/later.png").write_text("later")
    clone.commit("code that refuses")
    state = clone.retrain()
    assert (state.name, state.message) == ("Failed", "# copy.size is 0; needed at least 1")
    assert clone.left_behind() == []
    (clone.folder / "data/later.png").unlink()
    (clone.folder / "params.yaml").write_text(before)
    shutil.rmtree(own)
    clone.commit("code that does not")


def test_what_a_killed_run_left_is_removed_by_the_next(clone: Clone, prefect_server: str) -> None:
    runs = clone.folder / ".dvc/tmp/forgeline/runs"
    clone.run("git", "worktree", "add", "--quiet", "--detach", str(runs / "dead"), "HEAD")
    (runs / "dead.lock").touch()
    assert clone.retrain().name == "Nothing new"
    assert clone.left_behind() == []


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ("{branch: mein}", "run.branch is 'mein'; needed a branch of the remote 'origin'"),
        ("{branch: 'a b'}", "run.branch is 'a b'; needed the name of a branch"),
    ],
)
def test_a_branch_that_is_not_there(clone: Clone, prefect_server: str, settings: str, sentence: str) -> None:
    (clone.folder / "params.yaml").write_text(f"publish: {{url: null, name: toy}}\nrun: {settings}\n")
    state = clone.retrain()
    (clone.folder / "params.yaml").write_text(PARAMS)
    with pytest.raises(ForgelineError, match=sentence):
        state.result()


def test_data_that_dvc_tracks_come_from_its_remote(clone: Clone, prefect_server: str) -> None:
    """As on a machine that has never seen them: neither the folder nor the cache of the clone has them."""

    def commit(message: str) -> None:
        clone.run("dvc", "add", "--quiet", "data")
        clone.run("dvc", "push", "--quiet", "data.dvc")
        clone.commit(message)
        shutil.rmtree(clone.folder / "data")
        shutil.rmtree(clone.folder / ".dvc/cache")

    clone.run("git", "checkout", "--quiet", "params.yaml")
    shutil.copytree(clone.folder / "data", clone.folder / "kept")
    (clone.folder / ".gitignore").write_text("/data\n/kept\n/list.txt\n/copy.txt\n")
    commit("data by DVC")
    assert clone.retrain().name == "Nothing new"  # the same data, by another way
    shutil.copytree(clone.folder / "kept", clone.folder / "data")
    (clone.folder / "data/c.png").write_text("c")
    commit("more of them")
    state = clone.retrain()
    assert (state.name, [run.outcome for run in state.result().stages]) == ("Completed", ["ran", "ran"])
    clone.run("git", "fetch", "--quiet")
    clone.run("dvc", "get", "--quiet", "--force", "--rev", clone.tip(), ".", "copy.txt")
    names = {path.name for path in (clone.folder / "kept").iterdir()}
    assert set((clone.folder / "copy.txt").read_text().split()) == {*names, "c.png"}
    assert clone.retrain().name == "Nothing new"


def test_a_prefix_of_a_store_is_looked_at_anew_each_time(clone: Clone, prefect_server: str) -> None:
    """With the real stage `source`."""
    store = boto3.session.Session().client("s3")
    store.create_bucket(Bucket="raw")
    store.put_object(Bucket="raw", Key="images/one/a.png", Body=b"a")
    probe = f"{sys.executable} -m pipeline stage source"
    (clone.folder / "dvc.yaml").write_text(
        "stages:\n"
        f"  source: {{cmd: {probe}, params: [source], outs: [out/inventory.json], always_changed: true}}\n"
        "  copy: {cmd: cp out/inventory.json copy.txt, deps: [out/inventory.json], outs: [copy.txt]}\n"
    )
    source = "source: {kind: images, url: 's3://raw/images', licence: unknown}"
    (clone.folder / "params.yaml").write_text(PARAMS.replace("source: {url: data}", source))
    (clone.folder / ".gitignore").write_text("/data\n/kept\n/out\n/copy.txt\n")
    clone.commit("data in a store")
    assert [clone.retrain().name for _ in range(2)] == ["Completed", "Nothing new"]
    store.put_object(Bucket="raw", Key="images/two/b.png", Body=b"b")
    assert [clone.retrain().name for _ in range(2)] == ["Completed", "Nothing new"]
    store.put_object(Bucket="raw", Key="images/two/b.png", Body=b"c")
    assert [clone.retrain().name for _ in range(2)] == ["Completed", "Nothing new"]
    clone.run("git", "fetch", "--quiet")
    clone.run("dvc", "get", "--quiet", "--force", "--rev", clone.tip(), ".", "copy.txt")
    assert all(name in (clone.folder / "copy.txt").read_text() for name in ("one/a.png", "two/b.png"))


def test_no_credentials_in_what_runs_leave_behind(clone: Clone, prefect_server: str, prefect_home: Path) -> None:
    """The probe has printed them; the server's database holds every line of the logs, state and artifact."""
    for handler in logging.getLogger("prefect.flow_runs").handlers:
        handler.flush()
    clone.run("git", "fetch", "--quiet")
    files = [path for root in (prefect_home, clone.folder) for path in root.rglob("*") if path.is_file()]
    texts = [path.read_bytes() for path in files]
    texts.append(clone.run("git", "log", "--all", "--patch").encode())
    assert any(b"key ***" in text for text in texts)
    assert [path for path, text in zip(files, texts, strict=False) if servers.SECRET.encode() in text] == []
    assert servers.SECRET.encode() not in texts[-1]
