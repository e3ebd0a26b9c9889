from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

from pipeline.cli import forgeline
from pipeline.delivery import open_release, open_store, publish, pull
from pipeline.delivery.versions import find
from pipeline.errors import FailedError, UserError


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, Path]:
    """A private and its public key, by OpenSSL."""
    return make_keys(tmp_path, "ours")


def make_keys(folder: Path, name: str) -> tuple[Path, Path]:
    private, public = folder / f"{name}.pem", folder / f"{name}.pub.pem"
    subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", private], check=True, capture_output=True)
    subprocess.run(["openssl", "pkey", "-in", private, "-pubout", "-out", public], check=True, capture_output=True)
    return private, public


def test_what_was_signed_is_pulled_with_the_key(url: str, images, description, keys, tmp_path: Path) -> None:
    publish(open_store(url), "digits", images.root, description=description, documents={}, key=keys[0])
    pull(f"{url}/digits", tmp_path / "dest", key=keys[1])
    assert open_release(f"{url}/digits", key=keys[1]).classes == images.classes


def test_openssl_agrees(url: str, images, description, keys, tmp_path: Path) -> None:
    publish(open_store(url), "digits", images.root, description=description, documents={}, key=keys[0])
    version = find(f"{url}/digits")
    (tmp_path / "manifest").write_bytes(version.data)
    (tmp_path / "sig").write_bytes(version.store.read(version.key("manifest.json.sig"))[0])
    words = [
        "openssl",
        "pkeyutl",
        "-verify",
        "-pubin",
        "-inkey",
        keys[1],
        "-rawin",
        "-in",
        "manifest",
        "-sigfile",
        "sig",
    ]
    said = subprocess.run(words, cwd=tmp_path, check=True, capture_output=True, text=True)
    assert "Signature Verified Successfully" in said.stdout


@pytest.mark.parametrize("how", ["unsigned", "another key", "another manifest", "cut"])
def test_what_the_key_did_not_sign_is_refused(url: str, images, description, keys, tmp_path: Path, how: str) -> None:
    store, other = open_store(url), make_keys(tmp_path, "theirs")
    key = {"unsigned": None, "another key": other[0]}.get(how, keys[0])
    publish(store, "digits", images.root, description=description, documents={}, key=key)
    version = find(f"{url}/digits")
    changed = {
        "another manifest": ("manifest.json", version.data.replace(b"CC BY 4.0", b"CC BY 3.0")),
        "cut": ("manifest.json.sig", b"x" * 63),
    }.get(how)
    if changed:
        store.delete(version.key(changed[0]))
        store.create(version.key(changed[0]), changed[1])
    with pytest.raises(FailedError, match=r"digits@.*: is not signed"):
        pull(f"{url}/digits", tmp_path / "dest", key=keys[1])
    assert not (tmp_path / "dest").exists()


def test_a_version_is_signed_later_but_not_by_another(url: str, images, description, keys, tmp_path: Path) -> None:
    store = open_store(url)
    publish(store, "digits", images.root, description=description, documents={})
    for _ in range(2):
        publish(store, "digits", images.root, description=description, documents={}, key=keys[0])
    pull(f"{url}/digits", tmp_path / "dest", key=keys[1])
    other = make_keys(tmp_path, "theirs")[0]
    with pytest.raises(FailedError, match=r"manifest\.json\.sig: is of another key already"):
        publish(store, "digits", images.root, description=description, documents={}, key=other)


def test_another_key_overwrites_no_signature_where_conditions_are_ignored(
    ignoring, s3_url: str, images, description, keys, tmp_path: Path
) -> None:
    store = open_store(s3_url)
    publish(store, "digits", images.root, description=description, documents={}, key=keys[0])
    other = make_keys(tmp_path, "theirs")[0]
    with pytest.raises(FailedError, match=r"manifest\.json\.sig: is of another key already"):
        publish(store, "digits", images.root, description=description, documents={}, key=other)
    words = ["pull", f"{s3_url}/digits", str(tmp_path / "dest"), "--key", str(keys[1])]
    said = CliRunner().invoke(forgeline, words).stdout
    assert said == f"{tmp_path / 'dest'}: whole, every byte as its manifest, which the key signed, says\n"


def test_what_is_no_key_is_said_before_anything_is_written(tmp_path: Path, images, description, keys) -> None:
    store = open_store(str(tmp_path / "releases"))
    (tmp_path / "no.pem").write_text("no key")
    for path, said in (("no.pem", "is not an ed25519 private key"), ("nowhere.pem", "cannot be read")):
        with pytest.raises(UserError, match=said):
            publish(store, "digits", images.root, description=description, documents={}, key=tmp_path / path)
    assert not (tmp_path / "releases").exists()
