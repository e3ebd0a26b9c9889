"""What is said holds no credentials."""

from __future__ import annotations

import pytest

from flows.hiding import hidden


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
