"""infra/aws/gpu.yaml, deployed to moto, and the runs that Prefect's ECS worker starts there by job-template.json.

moto makes all but the capacity provider and its tie to the cluster; those are made from the template's words by the
API, which checks them. It places a task whatever its GPUs and its capacity provider, and runs nothing.
"""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import os
import subprocess
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto.ec2 import utils as ec2_utils

ROOT = Path(__file__).parents[2]
TEMPLATE = json.loads((ROOT / "infra" / "aws" / "job-template.json").read_text())


def client(service: str) -> Any:
    return boto3.session.Session().client(service)


@pytest.fixture(scope="module")
def gpu(deploy: Callable[..., Any]) -> Any:
    """The stack beside that of storage.yaml, with its capacity provider."""
    deploy("storage.yaml", "forgeline")
    (vpc,) = client("ec2").describe_vpcs()["Vpcs"]
    subnets = [each["SubnetId"] for each in client("ec2").describe_subnets()["Subnets"][:2]]
    stack = deploy("gpu.yaml", "forgeline-gpu", Vpc=vpc["VpcId"], Subnets=",".join(subnets))
    resources = stack.template["Resources"]
    spot = resources["Spot"]["Properties"]
    assert spot["Name"] == {"Fn::Sub": "${AWS::StackName}-spot"}
    (group,) = client("autoscaling").describe_auto_scaling_groups()["AutoScalingGroups"]
    provider = api(spot["AutoScalingGroupProvider"]) | {"autoScalingGroupArn": group["AutoScalingGroupARN"]}
    client("ecs").create_capacity_provider(name="forgeline-gpu-spot", autoScalingGroupProvider=provider)
    tie = resources["ClusterUsesSpot"]["Properties"]
    assert (tie["Cluster"], tie["CapacityProviders"]) == ({"Ref": "Cluster"}, [{"Ref": "Spot"}])
    client("ecs").put_cluster_capacity_providers(
        cluster="forgeline-gpu",
        capacityProviders=["forgeline-gpu-spot"],
        defaultCapacityProviderStrategy=[
            api(each) | {"capacityProvider": "forgeline-gpu-spot"} for each in tie["DefaultCapacityProviderStrategy"]
        ],
    )
    return stack


def api(properties: dict[str, Any]) -> dict[str, Any]:
    """What a template says with a capital, as the API wants it."""
    return {
        key[0].lower() + key[1:]: api(value) if isinstance(value, dict) and "Ref" not in value else value
        for key, value in properties.items()
    }


def test_spot_instances_come_and_go_with_the_tasks(gpu: Any) -> None:
    assert gpu.ignored == {"AWS::ECS::CapacityProvider", "AWS::ECS::ClusterCapacityProviderAssociations"}
    (group,) = client("autoscaling").describe_auto_scaling_groups()["AutoScalingGroups"]
    assert (group["MinSize"], group["MaxSize"], group["DesiredCapacity"]) == (0, 2, 0)
    assert group["NewInstancesProtectedFromScaleIn"]
    assert group["MixedInstancesPolicy"]["InstancesDistribution"] == {
        "OnDemandPercentageAboveBaseCapacity": 0,
        "SpotAllocationStrategy": "price-capacity-optimized",
    }
    (provider,) = client("ecs").describe_capacity_providers(capacityProviders=["forgeline-gpu-spot"])[
        "capacityProviders"
    ]
    scaling = provider["autoScalingGroupProvider"]["managedScaling"]
    assert (scaling["status"], scaling["targetCapacity"]) == ("ENABLED", 100)
    assert provider["autoScalingGroupProvider"]["managedTerminationProtection"] == "ENABLED"
    (version,) = client("ec2").describe_launch_template_versions(LaunchTemplateId=gpu.ids["Instance"])[
        "LaunchTemplateVersions"
    ]
    data = version["LaunchTemplateData"]
    assert data["MetadataOptions"] == {"HttpTokens": "required", "HttpPutResponseHopLimit": 1}
    assert data["BlockDeviceMappings"][0]["Ebs"]["Encrypted"]
    (group,) = client("ec2").describe_security_groups(GroupIds=[gpu.ids["NothingComesIn"]])["SecurityGroups"]
    assert group["IpPermissions"] == []


def test_launching_is_for_this_cluster_and_the_trainer_only(gpu: Any) -> None:
    policy = client("iam").get_policy(PolicyArn=gpu.outputs["LaunchPolicy"])["Policy"]
    version = client("iam").get_policy_version(PolicyArn=policy["Arn"], VersionId=policy["DefaultVersionId"])
    allowed = {}
    for statement in version["PolicyVersion"]["Document"]["Statement"]:
        assert statement["Effect"] == "Allow"
        for action in [statement["Action"]] if isinstance(statement["Action"], str) else statement["Action"]:
            allowed[action] = statement["Resource"]
    here = "arn:aws:ecs:us-east-1:123456789012"
    assert allowed == {
        "ecs:RegisterTaskDefinition": "*",
        "ecs:DescribeTaskDefinition": "*",
        "ecs:RunTask": f"{here}:task-definition/forgeline-gpu:*",
        "ecs:StopTask": f"{here}:task/forgeline-gpu/*",
        "ecs:DescribeTasks": f"{here}:task/forgeline-gpu/*",
        "ecs:TagResource": f"{here}:task/forgeline-gpu/*",
        "iam:PassRole": client("iam").get_role(RoleName="forgeline-trainer")["Role"]["Arn"],
    }


def test_a_container_is_told_of_the_interruption(gpu: Any, tmp_path: Path) -> None:
    """The instance's own script, with curl, docker and sleep that write down how they were called."""
    (version,) = client("ec2").describe_launch_template_versions(LaunchTemplateId=gpu.ids["Instance"])[
        "LaunchTemplateVersions"
    ]
    script = base64.b64decode(version["LaunchTemplateData"]["UserData"]).decode()
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    config, watcher = (part.split("\nEOF\n")[0] for part in script.split("<<'EOF'\n")[1:])
    assert "ECS_CLUSTER=forgeline-gpu" in config.splitlines()
    log = tmp_path / "log"
    for name, body in {
        "sleep": "",
        "curl": 'case "$*" in *PUT*) echo TOKEN;; '
        f'*TOKEN*instance-action) [ $(grep -c "^sleep" {log}) -ge 3 ];; *) false;; esac',
        "docker": "[ $1 = ps ] && echo 0123abcd; true",
    }.items():
        command = tmp_path / name
        command.write_text(f'#!/bin/bash\necho "{name} $*" >> {log}\n{body}\n')
        command.chmod(0o755)
    subprocess.run(["bash", "-c", watcher], env={"PATH": f"{tmp_path}:{os.environ['PATH']}"}, check=True, timeout=60)
    said = log.read_text().splitlines()
    assert said.count("sleep 5") == 3
    assert said[-2:] == [
        "docker ps --quiet --filter label=com.amazonaws.ecs.container-name=prefect",
        "docker stop -t 110 0123abcd",
    ]


def test_the_worker_runs_a_task_with_a_gpu_on_spot_as_trainer(gpu: Any, aws: str) -> None:
    from prefect.client.orchestration import PrefectClient
    from prefect.client.schemas.objects import FlowRun
    from prefect_aws.workers import ecs_worker

    (instance,) = client("ec2").run_instances(ImageId="ami-12345678", MinCount=1, MaxCount=1)["Instances"]
    document = ec2_utils.generate_instance_identity_document(boto3.resource("ec2").Instance(instance["InstanceId"]))
    client("ecs").register_container_instance(cluster="forgeline-gpu", instanceIdentityDocument=json.dumps(document))
    configuration = asyncio.run(
        ecs_worker.ECSJobConfiguration.from_template_and_values(
            TEMPLATE,
            {
                "image": "forgeline:1",
                "region": "us-east-1",
                "memory": 2048,
                "env": {"PREFECT_API_URL": "http://server/api"},
            },
            client=PrefectClient("http://127.0.0.1:1/api"),  # which has nothing to ask
        )
    )
    run = FlowRun(name="night", flow_id=uuid.uuid4())
    configuration.prepare_for_flow_run(run)
    worker = ecs_worker.ECSWorker(work_pool_name="forgeline-gpu")
    arn, _ = worker._prepare_and_create_task(logging.getLogger("test"), client("ecs"), configuration, run)

    (task,) = client("ecs").describe_tasks(cluster="forgeline-gpu", tasks=[arn])["tasks"]
    assert task["capacityProviderName"] == "forgeline-gpu-spot"
    (override,) = task["overrides"]["containerOverrides"]
    assert override["command"] == ["prefect", "flow-run", "execute"]
    environment = {each["name"]: each["value"] for each in override["environment"]}
    assert environment["PREFECT_FLOW_RUN_EXECUTE_SIGTERM_BEHAVIOR"] == "reschedule"
    assert environment["PREFECT_API_URL"] == "http://server/api"
    definition = client("ecs").describe_task_definition(taskDefinition=task["taskDefinitionArn"])["taskDefinition"]
    assert (definition["family"], definition["requiresCompatibilities"]) == ("forgeline-gpu", ["EC2"])
    assert client("iam").get_role(RoleName=definition["taskRoleArn"])  # a name serves as well
    (container,) = definition["containerDefinitions"]
    assert (container["name"], container["image"], container["memory"]) == ("prefect", "forgeline:1", 2048)
    assert container["resourceRequirements"] == [{"type": "GPU", "value": "1"}]
    assert container["stopTimeout"] == 120
    options = container["logConfiguration"]["options"]
    assert options["awslogs-region"] == "us-east-1"
    groups = client("logs").describe_log_groups()["logGroups"]
    assert options["awslogs-group"] in [group["logGroupName"] for group in groups]
