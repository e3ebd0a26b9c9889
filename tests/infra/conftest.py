"""An AWS of this machine (moto's server), which deploys templates, and Prefect's workers for ECS and Kubernetes."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import pytest
import servers
from cfnlint.decode import cfn_yaml

ROOT = Path(__file__).parents[2]

sys.path.append(str(Path(sys.prefix, "workers")))  # where the Makefile has them, after all that is installed


@pytest.fixture(scope="module")
def aws(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An empty account at the URL that every client of this process and its children finds."""
    from moto.moto_api._internal.models import moto_api_backend

    nowhere = tmp_path_factory.mktemp("aws")
    with servers.moto() as url, pytest.MonkeyPatch.context() as patch:
        for key, value in {
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": url,
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": str(nowhere / "config"),
            "AWS_SHARED_CREDENTIALS_FILE": str(nowhere / "credentials"),
        }.items():
            patch.setenv(key, value)
        for key in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3"):
            patch.delenv(key, raising=False)
        moto_api_backend.reset()  # servers of one process share what they hold
        yield url
        moto_api_backend.reset()


@dataclass(frozen=True, kw_only=True)
class Stack:
    """`template` as cfn-lint reads it, `ids` and `outputs` by their names in it; `ignored` are the types of resources
    that moto does not make."""

    template: dict[str, Any]
    ids: dict[str, str]
    outputs: dict[str, str]
    ignored: set[str]


@pytest.fixture(scope="module")
def deploy(aws: str) -> Callable[..., Stack]:
    """Deploys a template of infra/aws: its name, that of the stack, and parameters."""

    def run(name: str, stack: str, **parameters: str) -> Stack:
        path = ROOT / "infra" / "aws" / name
        formation = boto3.session.Session().client("cloudformation")
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            formation.create_stack(
                StackName=stack,
                TemplateBody=path.read_text(),
                Capabilities=["CAPABILITY_NAMED_IAM"],
                Parameters=[{"ParameterKey": key, "ParameterValue": value} for key, value in parameters.items()],
            )
            (found,) = formation.describe_stacks(StackName=stack)["Stacks"]
            resources = formation.list_stack_resources(StackName=stack)["StackResourceSummaries"]
        assert found["StackStatus"] == "CREATE_COMPLETE"
        return Stack(
            template=cfn_yaml.load(str(path)),
            ids={each["LogicalResourceId"]: each["PhysicalResourceId"] for each in resources},
            outputs={each["OutputKey"]: each["OutputValue"] for each in found["Outputs"]},
            ignored={str(each.message).split()[3] for each in said if "not supported by moto" in str(each.message)},
        )

    return run
