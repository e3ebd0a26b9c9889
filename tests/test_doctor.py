"""The doctor finds what is missing, by name, and says what mends it."""

from __future__ import annotations

import hashlib
import json
import re
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from pipeline import doctor
from pipeline.delivery import open_store
from pipeline.doctor import Check, checks

ROOT = Path(__file__).parents[1]


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project in which nothing is missing."""
    for name in ("params.yaml", "dvc.yaml"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    subprocess.run(["git", "init", "--quiet"], cwd=tmp_path, check=True)
    (tmp_path / ".dvc").mkdir()
    monkeypatch.chdir(tmp_path)
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


def test_a_record_that_no_other_clone_could_pull(workspace: Path) -> None:
    run_from(workspace, "{record: forgeline/nightly}")
    check = finding(workspace, "remotes")
    assert (check.status, check.found) == ("warning", "no DVC remote: other clones cannot pull what runs record")
    (workspace / ".dvc/config").write_text("[core]\n    remote = store\n")
    assert finding(workspace, "remotes").status == "ok"


def test_stages_that_are_handed_over_need_a_git_remote_and_a_dvc_remote(workspace: Path) -> None:
    run_from(workspace, "{remote_stages: [train]}")
    assert finding(workspace, "remotes").mend == "git remote add origin URL"
    subprocess.run(["git", "init", "--quiet", "--bare", "origin"], cwd=workspace, check=True)
    subprocess.run(["git", "remote", "add", "origin", "origin"], cwd=workspace, check=True)
    check = finding(workspace, "remotes")
    assert (check.status, check.found) == ("missing", "no DVC remote, by which run.remote_stages gets its inputs")
    (workspace / ".dvc/config").write_text("[core]\n    remote = store\n")
    assert finding(workspace, "remotes").found == "origin can be reached"
