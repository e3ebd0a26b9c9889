"""The doctor finds what is missing, by name, and says what mends it."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.metadata import version
from pathlib import Path
from socketserver import StreamRequestHandler, TCPServer
from typing import NamedTuple

import boto3
import pytest
import servers
from dvc.repo import Repo
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows.server import temporary_server
from flows.up import DEPLOYMENT
from pipeline import doctor
from pipeline.delivery import open_store
from pipeline.doctor import CONSTRAINTS, NIGHTLY_DEPLOYMENT, Check, checks
from pipeline.running import POOL, REMOTE_DEPLOYMENT, REMOTE_POOL

ROOT = Path(__file__).parents[1]
ASK_PREFECT = doctor._ASK_PREFECT


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project in which nothing is missing."""
    for name in ("params.yaml", "dvc.yaml"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    subprocess.run(["git", "init", "--quiet"], cwd=tmp_path, check=True)
    (tmp_path / ".dvc").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))
    monkeypatch.setenv("FORGELINE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(doctor, "_ASK_PREFECT", "")  # which takes a second, so one test does
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    return tmp_path


def finding(workspace: Path, name: str) -> Check:
    (check,) = (check for check in checks(workspace) if check.name == name)
    return check


def publish_to(workspace: Path, url: str) -> None:
    settings = (workspace / "params.yaml").read_text()
    assert "url: releases\n" in settings
    (workspace / "params.yaml").write_text(settings.replace("url: releases\n", f"url: {url}\n"))


def test_where_nothing_is_missing_every_check_is_ok(workspace: Path) -> None:
    assert [check for check in checks(workspace) if check.status == "missing"] == []


def test_a_misspelt_setting_of_any_stage_is_named(workspace: Path) -> None:
    settings = (workspace / "params.yaml").read_text()
    (workspace / "params.yaml").write_text(settings.replace("  images_per_class:", "  images_per_clas:"))
    check = finding(workspace, "settings")
    assert check.status == "missing"
    assert check.found == "params.yaml: augment.images_per_clas is not a setting; did you mean 'images_per_class'?"


@pytest.mark.parametrize(
    ("file", "content", "sentence"),
    [
        ("dvc.yaml", "stages:\n", "dvc.yaml: stages found nothing, needed a mapping"),
        ("dvc.yaml", "vars: []\n", "dvc.yaml: stages is missing; needed this section"),
        ("params.yaml", None, "params.yaml: train found nothing, needed a mapping"),
    ],
)
def test_a_section_that_is_no_mapping_is_named(workspace: Path, file: str, content: str | None, sentence: str) -> None:
    settings = re.sub(r"(?m)^train:\n(( .*)?\n)*", "train:\n", (workspace / file).read_text())
    (workspace / file).write_text(content or settings)
    check = finding(workspace, "settings")
    assert (check.status, check.found) == ("missing", sentence)


@pytest.mark.parametrize(("missing", "mend"), [(".git", "git init"), (".dvc", "dvc init")])
def test_a_folder_that_is_no_repository(workspace: Path, missing: str, mend: str) -> None:
    (workspace / missing).rename(workspace / "elsewhere")
    assert finding(workspace, "repository") == Check(
        name="repository", status="missing", found=f"no {missing} in {workspace} or above", mend=mend
    )


def test_a_folder_that_is_no_project(workspace: Path) -> None:
    (workspace / "dvc.yaml").unlink()
    assert finding(workspace, "repository").found == f"no dvc.yaml in {workspace}"


def test_no_git(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(workspace))
    assert finding(workspace, "git") == Check(
        name="git", status="missing", found="no git", mend="install it: apt-get install git"
    )


def test_a_missing_package_is_named(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "PACKAGES", ("torch", "no-such-package"))
    check = finding(workspace, "packages")
    assert (check.status, check.found) == ("missing", "no no-such-package")


def test_versions_that_are_not_pinned_are_named(workspace: Path) -> None:
    (workspace / "infra").mkdir()
    numpy = version("numpy").partition("+")[0]
    (workspace / CONSTRAINTS).write_text(
        f"numpy==0.9 ; python_version < '3'\nnumpy=={numpy} ; python_version >= '3'\nno-such-package==1\n"
    )
    assert finding(workspace, "packages").status == "ok"
    (workspace / CONSTRAINTS).write_text(f"numpy==0.9\nruamel-yaml==0.1\nscipy=={version('scipy')}\n")
    check = finding(workspace, "packages")
    assert (check.status, check.found) == (
        "warning",
        f"other versions than infra/constraints.txt pins: numpy {numpy} instead of 0.9, "
        f"ruamel-yaml {version('ruamel.yaml')} instead of 0.1",
    )


def test_what_the_advice_for_a_full_disk_keeps_and_what_it_removes(workspace: Path) -> None:
    """Sets that a commit records, here or of a remote's branch, are kept, whether they are pushed or not."""

    def dvc(*words: str) -> None:
        subprocess.run([sys.executable, "-m", "dvc", *words, "--quiet"], cwd=workspace, check=True)

    def git(*words: str) -> None:
        subprocess.run(["git", "-c", "user.name=t", "-c", "user.email=t@t", *words], cwd=workspace, check=True)

    advised = re.search(r"'dvc (gc [^']+)'", finding_of_little(workspace).mend)
    assert advised is not None
    (workspace / "dvc.yaml").unlink()
    dvc("init", "--force")
    for content in ("recorded", "of no commit", "here"):
        (workspace / "set").write_text(content)
        dvc("add", "set")
        if content == "recorded":
            git("add", "set.dvc")
            git("commit", "--quiet", "--message", content)
            git("update-ref", "refs/remotes/origin/nightly", "HEAD")
            git("update-ref", "-d", "HEAD")
    dvc(*advised[1].split(), "--force")
    cached = (workspace / ".dvc/cache/files/md5").rglob("*")
    assert {path.read_text() for path in cached if path.is_file()} == {"recorded", "here"}


def finding_of_little(workspace: Path) -> Check:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(doctor, "LEAST_DISK_GB", 1e9)
        return finding(workspace, "disk")


def test_the_disk_of_the_cache_counts_too(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """/dev/shm is a disk of its own, with little space as it is told here."""
    before = finding_of_little(workspace).found
    monkeypatch.setattr(shutil, "disk_usage", lambda place: Usage(1e9 if "shm" in str(place) else 9e9))
    (workspace / ".dvc/config").write_text("[cache]\n    dir = /dev/shm/not/yet\n")
    check = finding(workspace, "disk")
    assert "disk at" not in before
    assert (check.status, check.found) == ("warning", "1.0 GB of disk at /dev/shm/not/yet free, needed 5")


class Usage(NamedTuple):
    free: float


def test_little_disk_and_memory_are_warnings(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "LEAST_DISK_GB", 1e9)
    monkeypatch.setattr(doctor, "LEAST_MEMORY_GB", 1e9)
    assert {"memory", "disk"} <= {check.name for check in checks(workspace) if check.status == "warning"}


def test_a_store_that_is_not_there_yet_is_not_made_by_looking(workspace: Path) -> None:
    assert finding(workspace, "store").status == "ok"
    assert not (workspace / "releases").exists()


def test_a_store_is_tried_and_nothing_is_left_in_it(workspace: Path) -> None:
    (workspace / "releases").mkdir()
    check = finding(workspace, "store")
    assert (check.status, check.found) == ("ok", "releases can be read and written, safely by several at once")
    assert open_store("releases").sizes("") == {}


def test_a_store_that_nobody_serves(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as unheard:
        unheard.bind(("127.0.0.1", 0))
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{unheard.getsockname()[1]}")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "someone")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        publish_to(workspace, "s3://bucket/sets")
        check = finding(workspace, "store")
    assert check.status == "missing"
    assert "s3://bucket/sets" in check.found
    assert "secret" not in check.found


def test_what_is_no_store(workspace: Path) -> None:
    publish_to(workspace, "gs://bucket")
    assert finding(workspace, "store").found == "'gs://bucket' is not a store; needed s3://bucket/prefix or a folder"


def test_weights_that_are_not_there_or_of_another_file(workspace: Path) -> None:
    assert finding(workspace, "weights").status == "ok"
    path = workspace / "params.yaml"
    weights = {"weights": "inception.pth", "weights_sha256": hashlib.sha256(b"weights").hexdigest()}
    evaluate = {"extractor": "inception-v3-compat", **weights}
    path.write_text(path.read_text().replace("\nevaluate:\n  seed: 2\n", f"\nevaluate: {json.dumps(evaluate)}\n"))
    check = finding(workspace, "weights")
    assert check.status == "missing"
    assert check.found.endswith("inception.pth: is not there; needed a file of weights")
    (workspace / "inception.pth").write_bytes(b"others")
    assert "inception.pth: has the sha256 " in finding(workspace, "weights").found
    (workspace / "inception.pth").write_bytes(b"weights")
    assert finding(workspace, "weights").status == "ok"


class Refuses(BaseHTTPRequestHandler):
    """Answers as a Prefect API that wants a password does, by a clock that may be another."""

    ahead = 0.0

    def do_GET(self) -> None:
        self.send_error(401)

    def date_time_string(self, timestamp: float | None = None) -> str:
        return super().date_time_string((timestamp or time.time()) + self.ahead)

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def prefect_api() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), Refuses) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/api"
        server.shutdown()


def test_a_prefect_server_that_answers(workspace: Path, monkeypatch: pytest.MonkeyPatch, prefect_api: str) -> None:
    monkeypatch.setenv("PREFECT_API_URL", prefect_api)
    assert finding(workspace, "Prefect").found == f"a server answers at {prefect_api}"


def test_a_prefect_server_that_does_not_answer(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as unheard:
        unheard.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unheard.getsockname()[1]}/api"
        monkeypatch.setenv("PREFECT_API_URL", url)
        check = finding(workspace, "Prefect")
    assert (check.status, check.found) == ("missing", f"nobody answers at {url}")


def test_a_server_that_a_profile_of_prefect_s_names(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, prefect_api: str
) -> None:
    monkeypatch.setattr(doctor, "_ASK_PREFECT", ASK_PREFECT)
    command = [sys.executable, "-m", "prefect", "config", "set", f"PREFECT_API_URL={prefect_api}"]
    subprocess.run(command, check=True, capture_output=True)
    assert finding(workspace, "Prefect").found == f"a server answers at {prefect_api}"


class Babbles(StreamRequestHandler):
    def handle(self) -> None:
        self.wfile.write(b"SSH-2.0-OpenSSH_9.2\r\n")


def test_what_speaks_no_http_is_no_prefect_server(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with TCPServer(("127.0.0.1", 0), Babbles) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}/api"
        monkeypatch.setenv("PREFECT_API_URL", url)
        found = {check.name: check for check in checks(workspace)}
        server.shutdown()
    assert (found["Prefect"].status, found["Prefect"].found) == ("missing", f"nobody answers at {url}")
    assert (found["clock"].status, found["workers"].status) == ("ok", "warning")


@pytest.mark.parametrize("url", ["http://127.0.0.1:port/api", "127.0.0.1/api", "http://[::1/api"])
def test_what_is_no_address_of_a_server(workspace: Path, monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("PREFECT_API_URL", url)
    check = finding(workspace, "Prefect")
    assert (check.status, check.found) == ("missing", f"nobody answers at {url}")


def test_a_profile_of_amazon_s_that_is_not_there(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "nope")
    publish_to(workspace, "s3://bucket/sets")
    found = {check.name: check for check in checks(workspace)}
    assert found["store"].status == "missing"
    assert "The config profile (nope) could not be found" in found["store"].found
    assert found["clock"].status == "ok"


def test_pools_workers_and_deployments_of_a_server(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_from(workspace, "{remote_stages: [train]}")
    with temporary_server() as started, ExitStack() as stack:
        url = started()
        monkeypatch.setenv("PREFECT_API_URL", url)
        stack.enter_context(temporary_settings({PREFECT_API_URL: url}))
        client = stack.enter_context(get_client(sync_client=True))

        def found(name: str) -> tuple[str, str]:
            check = finding(workspace, name)
            return check.status, check.found

        assert found("Prefect") == ("ok", f"a server answers at {url}")
        assert found("workers") == ("warning", "the server has no work pool 'forgeline'")
        assert found("deployments") == ("warning", f"the server has no deployment '{DEPLOYMENT}'")

        assert NIGHTLY_DEPLOYMENT == DEPLOYMENT
        flows = {name: client.create_flow_from_name(name) for name in ("retrain", "elsewhere")}
        client.create_work_pool(WorkPoolCreate(name=POOL, type="process"))
        client.create_work_pool(WorkPoolCreate(name=REMOTE_POOL, type="ecs"))
        client.create_deployment(flows["retrain"], "nightly", work_pool_name=POOL)
        assert found("workers") == (
            "warning",
            "no worker of the pool 'forgeline' is online; what is handed to it waits",
        )
        assert found("deployments") == ("warning", f"the server has no deployment '{REMOTE_DEPLOYMENT}'")

        client.create_deployment(flows["elsewhere"], "stage", work_pool_name=REMOTE_POOL)
        assert found("deployments") == (
            "missing",
            "the deployment 'elsewhere/stage' has no pull step, "
            "and what a pool of type ecs starts has none of our code",
        )
        clone = {"prefect.deployments.steps.git_clone": {"repository": "https://localhost/x.git"}}
        client.create_deployment(flows["elsewhere"], "stage", work_pool_name=REMOTE_POOL, pull_steps=[clone])
        assert found("deployments") == (
            "ok",
            "retrain/nightly for the pool 'forgeline' of type process; "
            "elsewhere/stage for the pool 'forgeline-gpu' of type ecs",
        )

        command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", POOL, "--name", "of-the-test"]
        worker = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            while "no worker of the pool 'forgeline-gpu'" not in (said := found("workers")[1]):
                assert worker.poll() is None, said
            mend = "'prefect worker start --pool forgeline-gpu --install-policy if-not-present'"
            assert finding(workspace, "workers").mend == mend
            run_from(workspace, "{}")
            assert found("workers") == ("ok", "of-the-test waits for runs of the pool 'forgeline'")
        finally:
            worker.kill()
            worker.wait()

        monkeypatch.setattr(doctor, "version", lambda name: "99.0" if name == "prefect" else version(name))
        assert finding(workspace, "Prefect").mend == "pip install 'prefect>=99.0' where the server runs"
        assert found("Prefect") == (
            "warning",
            f"the server at {url} has Prefect {version('prefect')}, which is older than 99.0 here",
        )


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    with servers.moto() as url:
        for name, value in {
            "AWS_ENDPOINT_URL_S3": url,
            "AWS_ACCESS_KEY_ID": "someone",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
        }.items():
            monkeypatch.setenv(name, value)
        client = boto3.session.Session().client("s3")
        client.create_bucket(Bucket="the-bucket")
        yield "s3://the-bucket/dvc"
        for each in client.list_objects_v2(Bucket="the-bucket").get("Contents", []):
            client.delete_object(Bucket="the-bucket", Key=each["Key"])
        client.delete_bucket(Bucket="the-bucket")


def dvc_remote(workspace: Path, url: str, *settings: str) -> tuple[str, str]:
    lines = "".join(f"    {setting}\n" for setting in (f"url = {url}", *settings))
    (workspace / ".dvc/config").write_text(f"[core]\n    remote = store\n['remote \"store\"']\n{lines}")
    check = finding(workspace, "DVC remote")
    return check.status, check.found


def test_a_dvc_remote_is_read_as_dvc_reads_it(workspace: Path, bucket: str) -> None:
    assert finding(workspace, "DVC remote").status == "ok"
    assert dvc_remote(workspace, bucket) == ("ok", "'store' is empty; the first 'dvc push' fills it")
    (workspace / "data").write_text("data")
    for words in ("add", "push"):
        subprocess.run([sys.executable, "-m", "dvc", words, "data", "--quiet"], cwd=workspace, check=True)
    assert dvc_remote(workspace, bucket) == ("ok", "'store' can be read")
    assert dvc_remote(workspace, "s3://no-such-bucket/dvc") == (
        "missing",
        "'store' cannot be read: The specified bucket does not exist",
    )
    status, said = dvc_remote(workspace, bucket, "profile = nope")
    assert (status, said) == ("missing", "'store' cannot be read: The config profile (nope) could not be found")
    with socket.socket() as unheard:
        unheard.bind(("127.0.0.1", 0))
        status, said = dvc_remote(workspace, bucket, f"endpointurl = http://127.0.0.1:{unheard.getsockname()[1]}")
    assert status == "missing"
    assert said.startswith("'store' cannot be read: Could not connect to the endpoint URL")


def test_a_dvc_remote_in_a_folder_and_one_that_is_none(workspace: Path) -> None:
    assert dvc_remote(workspace, "../remote") == ("ok", "'store' is empty; the first 'dvc push' fills it")
    assert dvc_remote(workspace, "gs://bucket/dvc")[0] == "missing"
    (workspace / ".dvc/config").write_text("[core]\n    remote = store\n")
    assert finding(workspace, "DVC remote").found == "config file error: remote 'store' doesn't exist"


def test_dvcs_repository_is_read_once(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_from(workspace, "{record: forgeline/nightly}")
    read, opened = Repo.__init__, []

    def count(repo: Repo, *words: str) -> None:
        opened.append(words)
        read(repo, *words)

    monkeypatch.setattr(Repo, "__init__", count)
    assert len(checks(workspace)) > len(opened) == 1


@pytest.mark.parametrize("ahead", [-3600.0, 0.0, 3600.0])
def test_a_clock_that_is_far_from_the_servers(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, prefect_api: str, ahead: float
) -> None:
    monkeypatch.setattr(Refuses, "ahead", ahead)
    monkeypatch.setenv("PREFECT_API_URL", prefect_api)
    assert finding(workspace, "clock").status == ("missing" if ahead else "ok")


def run_from(workspace: Path, settings: str) -> None:
    path = workspace / "params.yaml"
    path.write_text(path.read_text().partition("\nrun:")[0] + f"\nrun: {settings}\n")


def test_runs_that_need_no_remote(workspace: Path) -> None:
    assert finding(workspace, "remotes").status == "ok"
    assert finding(workspace, "workers").found == "none is needed; 'forgeline up' starts one for scheduled runs"


def test_a_branch_that_is_not_there(workspace: Path) -> None:
    run_from(workspace, "{branch: main}")
    check = finding(workspace, "remotes")
    assert (check.status, check.found) == ("missing", "no branch 'main' here")
    subprocess.run(["git", "init", "--quiet", "--bare", "origin"], cwd=workspace, check=True)
    subprocess.run(["git", "remote", "add", "origin", "origin"], cwd=workspace, check=True)
    check = finding(workspace, "remotes")
    assert (check.status, check.found) == ("missing", "the git remote 'origin' has no branch 'main'")
    subprocess.run(["git", "remote", "set-url", "origin", "nowhere"], cwd=workspace, check=True)
    assert finding(workspace, "remotes").found == "the git remote 'origin' cannot be read"


@pytest.mark.parametrize("origin", [False, True])
def test_a_branch_that_the_first_run_makes_is_not_said_to_be_there(workspace: Path, origin: bool) -> None:
    commit = ["git", "-c", "user.name=t", "-c", "user.email=t@t", "commit", "--quiet", "--allow-empty", "-m", "t"]
    for words in (["git", "checkout", "--quiet", "-B", "main"], commit):
        subprocess.run(words, cwd=workspace, check=True)
    add_dvc_remote(workspace)
    if origin:
        subprocess.run(["git", "init", "--quiet", "--bare", "origin"], cwd=workspace, check=True)
        subprocess.run(["git", "remote", "add", "origin", "origin"], cwd=workspace, check=True)
        subprocess.run(["git", "push", "--quiet", "origin", "main"], cwd=workspace, check=True)
    run_from(workspace, "{branch: main, record: forgeline/nightly}")
    makes = "the first run that is recorded makes forgeline/nightly"
    assert finding(workspace, "remotes").found == f"main can be reached; {makes}"
    run_from(workspace, "{record: forgeline/nightly}")
    assert finding(workspace, "remotes").found == (f"origin can be reached; {makes}" if origin else makes)
    run_from(workspace, "{branch: main, record: forgeline/nightly}")
    to = ["push", "--quiet", "origin", "main:forgeline/nightly"] if origin else ["branch", "forgeline/nightly"]
    subprocess.run(["git", *to], cwd=workspace, check=True)
    assert finding(workspace, "remotes").found == "main and forgeline/nightly can be reached"


def add_dvc_remote(workspace: Path, *options: str) -> None:
    command = [sys.executable, "-m", "dvc", "remote", "add", *options, "--default", "store", "../store", "--quiet"]
    subprocess.run(command, cwd=workspace, check=True)


@pytest.mark.parametrize("options", [(), ("--local",)])
def test_a_record_that_no_other_clone_could_pull(workspace: Path, options: tuple[str, ...]) -> None:
    run_from(workspace, "{record: forgeline/nightly}")
    check = finding(workspace, "remotes")
    assert (check.status, check.found) == ("warning", "no DVC remote: other clones cannot pull what runs record")
    add_dvc_remote(workspace, *options)
    assert finding(workspace, "remotes").status == "ok"


def test_stages_that_are_handed_over_need_a_git_remote_and_a_dvc_remote(workspace: Path) -> None:
    run_from(workspace, "{remote_stages: [train]}")
    assert finding(workspace, "remotes").mend == "git remote add origin URL"
    subprocess.run(["git", "init", "--quiet", "--bare", "origin"], cwd=workspace, check=True)
    subprocess.run(["git", "remote", "add", "origin", "origin"], cwd=workspace, check=True)
    check = finding(workspace, "remotes")
    assert (check.status, check.found) == ("missing", "no DVC remote, by which run.remote_stages gets its inputs")
    add_dvc_remote(workspace)
    assert finding(workspace, "remotes").found == "origin can be reached"
