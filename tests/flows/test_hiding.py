"""What is said holds no credentials."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import LogFilter, LogFilterFlowRunId
from prefect.client.schemas.sorting import FlowRunSort

from flows.hiding import hidden
from flows.retrain import retrain


@pytest.mark.parametrize(
    "name",
    ["AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_ACCESS_KEY_ID", "DB_PASSWORD", "FORGELINE_WEBHOOK", "API_KEY"],
)
def test_the_values_of_secret_variables_are_blotted_out(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "marked/value+1")
    assert hidden(f"{name}=marked/value+1 refused") == f"{name}=*** refused"


def test_files_of_credentials_and_short_words_stay_readable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/home/me/credentials")
    monkeypatch.setenv("SOME_TOKEN", "true")
    assert hidden("/home/me/credentials: true") == "/home/me/credentials: true"


def test_users_and_passwords_of_urls_are_blotted_out() -> None:
    said = "fatal: unable to access 'https://me:word@host/x.git/' and s3://bucket/a@b"
    assert hidden(said) == "fatal: unable to access 'https://***@host/x.git/' and s3://bucket/a@b"


KEYS = """[default]
aws_access_key_id = marked-key-id
aws_secret_access_key = marked+secret/of=aws
[profile other]
credential_source = Environment
aws_session_token = marked-token
region = eu-west-1
"""
DVC = """['remote "store"']
    url = s3://bucket/path
    secret_access_key = "marked#secret, of dvc"
    use_ssl = false
"""


def test_the_keys_of_the_files_that_boto3_reads_are_blotted_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.delenv(name, raising=False)
    said = "marked-key-id marked+secret/of=aws marked-token; Environment eu-west-1"
    assert hidden(said) == said
    (tmp_path / ".aws").mkdir()
    for name in ("credentials", "config"):
        (tmp_path / ".aws" / name).write_text(KEYS)
        assert hidden(said) == "*** *** ***; Environment eu-west-1"
        (tmp_path / ".aws" / name).unlink()
        assert hidden(said) == said
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "mine"))
    (tmp_path / "mine").write_text(KEYS)
    assert hidden(said) == "*** *** ***; Environment eu-west-1"
    (tmp_path / "mine").write_text("[no section")  # botocore tells of it
    assert hidden(said) == said


def test_the_secrets_of_dvc_s_settings_are_blotted_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".dvc").mkdir()
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    (tmp_path / ".dvc/config.local").write_text(DVC)
    said = "s3://bucket/path: marked#secret, of dvc, marked-token: false"
    assert hidden(said) == "s3://bucket/path: ***, marked-token: false"
    (tmp_path / ".dvc/config.local").write_text(DVC + "    credentialpath = keys\n")
    (tmp_path / ".dvc/keys").write_text(KEYS)
    assert hidden(said) == "s3://bucket/path: ***, ***: false"
    (tmp_path / ".dvc/config.local").write_text("[[[")
    assert hidden(said) == said


def test_what_dvc_prints_of_its_settings_is_in_no_log_and_no_artifact(
    workspace: Callable[[str], Path], prefect_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stage prints a credential by DVC itself, and another one fails with it."""
    show = "dvc config --local remote.store.secret_access_key"
    folder = workspace(f"  one: {{cmd: {show} | tee one.txt, outs: [one.txt]}}\n  two: {{cmd: '{show} && exit 1'}}\n")
    (folder / ".dvc/config.local").write_text(DVC)
    monkeypatch.chdir(folder)
    state = retrain(folder, return_state=True)
    assert (folder / "one.txt").read_text() == "marked#secret, of dvc\n"
    assert state.message == "stage 'two': ***"
    for handler in logging.getLogger("prefect.flow_runs").handlers:
        handler.flush()
    with get_client(sync_client=True) as client:
        (run,) = client.read_flow_runs(limit=1, sort=FlowRunSort.START_TIME_DESC)
        logs = client.read_logs(LogFilter(flow_run_id=LogFilterFlowRunId(any_=[run.id])))
        shown = [client.read_artifacts(), client.read_task_runs(), client.read_flow_runs()]
    assert "    ***" in [log.message for log in logs]
    assert "marked#secret" not in "".join(log.message for log in logs) + repr(shown)
