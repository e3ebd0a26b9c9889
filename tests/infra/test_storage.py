"""infra/aws/storage.yaml, deployed to moto, and what each role may do there.

moto makes the buckets with their encryption, the policies and the roles, and holds those who assumed a role to its
policies. It ignores versioning, public access, ownership and lifecycle in a template, and bucket policies with their
conditions: those are read from the template.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError
from click.testing import CliRunner
from delivery.conftest import describe, make_set
from moto import settings
from moto.core.authorization import ActionAuthenticatorMixin

from pipeline.cli import forgeline
from pipeline.delivery import keeping, open_release, release
from pipeline.delivery.pointer import Pointer, move
from pipeline.delivery.stores import ForbiddenError, Store, check, open_store

MANIFEST = "digits/v=0123456789abcdef/manifest.json"


def client(service: str) -> Any:
    """With the credentials that the environment names now."""
    return boto3.session.Session().client(service)


@pytest.fixture(scope="module")
def storage(deploy: Callable[..., Any]) -> Any:
    return deploy("storage.yaml", "forgeline")


@pytest.fixture
def become(storage: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """`with become("reader"):` this process and its children have that role, and moto holds them to it."""

    @contextmanager
    def as_role(role: str) -> Iterator[None]:
        arn = storage.outputs[f"{role.title()}Role"]
        assumed = client("sts").assume_role(RoleArn=arn, RoleSessionName="test")["Credentials"]
        with monkeypatch.context() as patch:
            patch.setenv("AWS_ACCESS_KEY_ID", assumed["AccessKeyId"])
            patch.setenv("AWS_SECRET_ACCESS_KEY", assumed["SecretAccessKey"])
            patch.setenv("AWS_SESSION_TOKEN", assumed["SessionToken"])
            patch.setattr(settings, "INITIAL_NO_AUTH_ACTION_COUNT", 0)
            patch.setattr(ActionAuthenticatorMixin, "request_count", 0)
            yield

    return as_role


def publish(store: Store, version: str = "0123456789abcdef") -> None:
    """As `forgeline publish` does last: the manifest, then the pointer."""
    assert store.create(f"digits/v={version}/manifest.json", b"{}")
    move(store, "digits", version, Pointer.read(store, "digits"), action="publish")


def test_roles_and_buckets_are_made_and_bucket_policies_are_not(storage: Any) -> None:
    assert storage.ignored == {"AWS::S3::BucketPolicy"}
    buckets = {storage.ids["Cache"], storage.ids["Releases"]}
    assert {storage.outputs["Remote"], storage.outputs["PublishUrl"]} == {f"s3://{name}" for name in buckets}
    for name in buckets:
        (rule,) = client("s3").get_bucket_encryption(Bucket=name)["ServerSideEncryptionConfiguration"]["Rules"]
        assert rule["ApplyServerSideEncryptionByDefault"] == {"SSEAlgorithm": "AES256"}
    assert {each["RoleName"] for each in client("iam").list_roles()["Roles"]} == {
        "forgeline-trainer",
        "forgeline-publisher",
        "forgeline-reader",
    }


def test_each_bucket_is_versioned_kept_and_shut_and_forgets_in_time(storage: Any) -> None:
    """From the template, since moto ignores it."""
    for name in ("Cache", "Releases"):
        bucket = storage.template["Resources"][name]
        assert bucket["DeletionPolicy"] == bucket["UpdateReplacePolicy"] == "Retain"
        properties = bucket["Properties"]
        assert properties["VersioningConfiguration"] == {"Status": "Enabled"}
        shut = ("BlockPublicAcls", "BlockPublicPolicy", "IgnorePublicAcls", "RestrictPublicBuckets")
        assert properties["PublicAccessBlockConfiguration"] == dict.fromkeys(shut, True)
        assert properties["OwnershipControls"] == {"Rules": [{"ObjectOwnership": "BucketOwnerEnforced"}]}
        rules = properties["LifecycleConfiguration"]["Rules"]
        assert all(rule["Status"] == "Enabled" for rule in rules)
        assert {key for rule in rules for key in rule} >= {
            "NoncurrentVersionExpiration",
            "AbortIncompleteMultipartUpload",
            "ExpiredObjectDeleteMarker",
        }
        # What is current never expires, but for the state of trainings.
        assert {rule.get("Prefix") for rule in rules if "ExpirationInDays" in rule} <= {"state/"}
        assert not any("ExpirationInDays" in rule for rule in rules) or name == "Cache"


def test_bucket_policies_only_deny(storage: Any) -> None:
    """From the template, since moto ignores it."""
    statements = {
        name: storage.template["Resources"][f"{name}Policy"]["Properties"]["PolicyDocument"]["Statement"]
        for name in ("Cache", "Releases")
    }
    for name, found in statements.items():
        assert all((each["Effect"], each["Principal"]) == ("Deny", "*") for each in found)
        assert found[0]["Condition"] == {"Bool": {"aws:SecureTransport": "false"}}
        assert found[0]["Resource"] == [{"Fn::GetAtt": [name, "Arn"]}, {"Fn::Sub": f"${{{name}.Arn}}/*"}]
    (_,), (_, conditional) = statements.values()
    assert conditional["Action"] == "s3:PutObject"
    assert conditional["Condition"] == {"Null": {"s3:if-match": "true", "s3:if-none-match": "true"}}


def test_a_publisher_publishes_and_takes_back(storage: Any, become: Callable[[str], Any]) -> None:
    with become("publisher"):
        store = open_store(storage.outputs["PublishUrl"])
        promises = check(store)
        assert (promises.read, promises.write, promises.create, promises.swap) == (True, True, True, True)
        publish(store)
        publish(store, "fedcba9876543210")
        found = Pointer.read(store, "digits")
        assert found is not None
        move(store, "digits", "0123456789abcdef", found, action="rollback")
        store.delete("digits/v=fedcba9876543210/manifest.json")
        assert store.sizes("digits/v=fedcba9876543210/") == {}
        with pytest.raises(ClientError, match="AccessDenied"):  # so that what it deletes can be brought back
            client("s3").put_bucket_versioning(
                Bucket=storage.ids["Releases"], VersioningConfiguration={"Status": "Suspended"}
            )


def test_a_reader_reads_releases_and_no_more(storage: Any, become: Callable[[str], Any]) -> None:
    url = f"{storage.outputs['PublishUrl']}/read"
    with become("publisher"):
        publish(open_store(url))
        open_store(storage.outputs["Remote"]).create("files/md5/00/11", b"data")
    with become("reader"):
        store = open_store(url)
        assert store.folders("") == ["digits"]
        pointer = Pointer.read(store, "digits")
        assert pointer is not None
        assert store.read(MANIFEST)
        assert store.read("digits/v=0123456789abcdef/yanked.json") is None  # and not refused
        assert not check(store).write
        with pytest.raises(ForbiddenError):
            move(store, "digits", pointer.version, pointer, action="promote")
        with pytest.raises(ForbiddenError):
            store.delete(MANIFEST)
        cache = open_store(storage.outputs["Remote"])
        with pytest.raises(ForbiddenError):
            cache.folders("")
        with pytest.raises(ForbiddenError):
            cache.read("files/md5/00/11")


def test_a_reader_does_all_that_readers_do(storage: Any, become: Callable[[str], Any], tmp_path: Path) -> None:
    """The commands themselves, and a release in Python, on a set that was signed and one that was yanked."""
    url = f"{storage.outputs['PublishUrl']}/used"
    private, public = tmp_path / "key.pem", tmp_path / "key.pub.pem"
    subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", private], check=True, capture_output=True)
    subprocess.run(["openssl", "pkey", "-in", private, "-pubout", "-out", public], check=True, capture_output=True)
    with become("publisher"):
        store = open_store(url)
        versions = []
        for seed in range(2):
            images = make_set(tmp_path / f"set-{seed}", seed)
            versions.append(
                release.publish(store, "digits", images.root, description=describe(), documents={}, key=private).version
            )
        keeping.yank(f"{url}/digits", why="a mistake")

    def use(*words: object) -> str:
        said = CliRunner().invoke(forgeline, [str(word) for word in words], catch_exceptions=False)
        assert said.exit_code == 0, said.output
        return said.stdout

    with become("reader"):
        assert [row["version"] for row in json.loads(use("list", url, "--json"))] == versions[::-1]
        assert "Digits, synthetic" in use("show", f"{url}/digits")
        assert "a mistake" in use("history", f"{url}/digits")
        assert versions[0] in use("verify", f"{url}/digits")
        use("pull", f"{url}/digits", tmp_path / "whole", "--key", public)
        use("pull", f"{url}/digits", tmp_path / "part", "--classes", "zero", "--format", "imagefolder")
        use("pull", f"{url}/digits@{versions[1]}", tmp_path / "yanked", "--yanked")
        assert len(list((tmp_path / "part").rglob("*.png"))) == 8
        assert len(list(open_release(f"{url}/digits", key=public).stream(seed=0))) == 24


def test_a_trainer_uses_the_cache_and_moves_no_pointer(
    storage: Any, become: Callable[[str], Any], tmp_path: Path
) -> None:
    url = f"{storage.outputs['PublishUrl']}/train"
    with become("publisher"):
        publish(open_store(url))
    with become("trainer"):
        releases = open_store(url)
        for refused in (
            lambda: releases.folders(""),
            lambda: releases.read("digits/latest.json"),
            lambda: releases.create("digits/stable.json", b"{}"),
            lambda: releases.swap("digits/latest.json", b"{}", '"tag"'),
            lambda: releases.delete("digits/latest.json"),
            lambda: releases.delete(MANIFEST),
        ):
            with pytest.raises(ForbiddenError):
                refused()

        cache = open_store(storage.outputs["Remote"])
        assert cache.create("state/0123/lease.json", b"mine")
        found = cache.read("state/0123/lease.json")
        assert found is not None
        assert cache.swap("state/0123/lease.json", b"still mine", found[1])
        cache.delete("state/0123/lease.json")

        pushes_and_pulls(storage.outputs["Remote"], tmp_path)
        key = next(iter(cache.sizes("files/")))
        with pytest.raises(ForbiddenError):
            cache.delete(key)  # data and models are not a trainer's to remove


def pushes_and_pulls(remote: str, folder: Path) -> None:
    """DVC itself, with the credentials and the endpoint of the environment."""

    def dvc(*arguments: str) -> None:
        subprocess.run(
            [sys.executable, "-m", "dvc", *arguments, "--quiet"],
            cwd=folder,
            env=os.environ | {"DVC_SITE_CACHE_DIR": str(folder / "site"), "DVC_NO_ANALYTICS": "1"},
            check=True,
        )

    dvc("init", "--no-scm")
    (folder / ".dvc" / "config").write_text(
        f"[core]\n    no_scm = true\n    remote = store\n['remote \"store\"']\n    url = {remote}\n"
    )
    data = folder / "data"
    data.write_text("an image set")
    dvc("add", "data")
    dvc("push")
    data.unlink()
    shutil.rmtree(folder / ".dvc" / "cache")
    dvc("pull")
    assert data.read_text() == "an image set"
