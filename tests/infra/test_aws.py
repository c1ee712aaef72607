"""infra/aws as Ray's own code takes it, and a simulated EC2; AWS itself was not asked."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml
from botocore.client import BaseClient
from botocore.exceptions import ParamValidationError
from jsonschema import ValidationError
from moto import mock_aws
from ray.autoscaler._private.aws.config import _get_subnets_or_die
from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
from ray.autoscaler._private.aws.utils import client_cache, resource_cache
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
from ray.autoscaler.v2.utils import ResourceRequestUtil

FOLDER = Path(__file__).parents[2] / "infra" / "aws"
REGION = "eu-central-1"
Config = dict[str, Any]


@pytest.fixture
def config() -> Config:
    """The file as it lies there."""
    return yaml.safe_load((FOLDER / "cluster.yaml").read_text())


@pytest.fixture
def key_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A home with the SSH key that Ray looks for."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".ssh").mkdir()
    (tmp_path / ".ssh" / "lotlip-ray.pem").write_text("a key")


def prepared(config: Config) -> Config:
    """As `ray up` prepares it. Raises: ValidationError."""
    config = prepare_config(copy.deepcopy(config))
    validate_config(config)
    return config


def node_configs(config: Config) -> dict[str, Any]:
    return {name: kind["node_config"] for name, kind in config["available_node_types"].items()}


def test_ray_accepts_the_file_and_adds_no_commands_of_its_own(config: Config):
    ready = prepared(config)
    assert ready["head_setup_commands"] == config["setup_commands"]
    assert ready["worker_setup_commands"] == config["setup_commands"]
    for place in ("head", "worker"):
        assert ready[f"{place}_start_ray_commands"] == config[f"{place}_start_ray_commands"]
        assert ready[f"{place}_start_ray_commands"][-1].startswith(
            "unset OMP_NUM_THREADS; ray start"
        )


@pytest.mark.parametrize(
    "path",
    [
        ("idle_timeout_minutes",),
        ("docker", "run_options"),
        ("auth", "ssh_user"),
        ("available_node_types", "gpu_spot", "min_workers"),
        ("available_node_types", "head", "resources"),
    ],
)
def test_a_mistyped_key_is_refused(config: Config, path: tuple[str, ...]):
    *above, key = path
    group = config
    for name in above:
        group = group[name]
    group[f"{key}_"] = group.pop(key)
    with pytest.raises(ValidationError, match=f"{key}_"):
        prepared(config)


def test_the_head_takes_no_tasks_and_a_demand_is_met_by_what_costs_least(
    config: Config, key_file: None
):
    scaling = AutoscalingConfig(config, skip_content_hash=True)

    def launched(resources: list[dict[str, float]], **seen: Any) -> dict[str, int]:
        request = SchedulingRequest(
            disable_launch_config_check=True,
            node_type_configs=scaling.get_node_type_configs(),
            max_num_nodes=scaling.get_max_num_worker_nodes(),
            resource_requests=ResourceRequestUtil.group_by_count(
                [ResourceRequestUtil.make(each) for each in resources]
            ),
            **seen,
        )
        reply = ResourceDemandScheduler().schedule(request)
        return {launch.instance_type: launch.count for launch in reply.to_launch}

    assert config["available_node_types"]["head"]["resources"] == {"CPU": 0}
    assert "--num-cpus=0" in config["head_start_ray_commands"][-1]
    four_gpus = [{"GPU": 1, "CPU": 8}] * 4
    assert launched([{"CPU": 8}] * 4) == {"cpu": 2}
    assert launched(four_gpus) == {"gpu_spot": 1}
    failed = {"recoverable_resource_availabilities": {"gpu_spot": 0.5}}
    assert launched(four_gpus, **failed) == {"gpu": 1}


def test_nothing_secret_and_nothing_of_this_machine_is_in_the_file(config: Config):
    text = (FOLDER / "cluster.yaml").read_text()
    assert not re.search(r"AKIA|aws_secret|--privileged|password|token[=:]\s*[0-9a-f]{8}", text)
    assert config["file_mounts"] == {}
    assert config["cluster_synced_files"] == []
    assert "--env=RAY_AUTH_MODE=token" in config["docker"]["run_options"]
    assert any(option.startswith("--shm-size=") for option in config["docker"]["run_options"])
    assert config["provider"]["use_internal_ips"] is True
    for name, node in node_configs(config).items():
        assert node["MetadataOptions"]["HttpTokens"] == "required", name
        assert node["IamInstanceProfile"].keys() == {"Name"}, name
        assert node["SecurityGroupIds"] == ["SECURITY_GROUP_ID"], name
        assert all(disk["Ebs"]["Encrypted"] for disk in node["BlockDeviceMappings"]), name


def test_what_must_be_filled_in_is_explained_in_the_runbook():
    text = (FOLDER / "cluster.yaml").read_text()
    runbook = (FOLDER.parent / "runbook.md").read_text()
    values = re.sub(r"#.*|--env=\w+=|\$\w+|unset \w+", "", text)
    names = set(re.findall(r"\b[A-Z]{3,}(?:_[A-Z]+)*\b", values)) - {"CPU", "GPU", "ALL"}
    assert {"REGION", "IMAGE", "AMI_ID", "SUBNET_ID", "SECURITY_GROUP_ID"} <= names
    assert [name for name in sorted(names) if f"`{name}`" not in runbook] == []


@pytest.fixture
def filled(config: Config, key_file: None) -> Iterator[Config]:
    """The file with the names of what was made on a simulated AWS."""
    for cache in (client_cache, resource_cache, _get_subnets_or_die):
        cache.cache_clear()
    with mock_aws():
        ec2, iam = boto3.client("ec2", region_name=REGION), boto3.client("iam")
        vpc = ec2.create_vpc(CidrBlock="10.0.0.0/16")["Vpc"]["VpcId"]
        subnet = ec2.create_subnet(VpcId=vpc, CidrBlock="10.0.1.0/24")["Subnet"]["SubnetId"]
        group = ec2.create_security_group(GroupName="lotlip", Description="nodes", VpcId=vpc)
        ec2.create_key_pair(KeyName="lotlip-ray")
        for profile in ("lotlip-ray-head", "lotlip-ray-worker"):
            iam.create_instance_profile(InstanceProfileName=profile)
        names = {
            "SECURITY_GROUP_ID": group["GroupId"],
            "SUBNET_ID": subnet,
            "AMI_ID": ec2.describe_images()["Images"][0]["ImageId"],
            "MLFLOW_HOST": "mlflow.example",
            "BUCKET": "bucket",
            "IMAGE": "registry.example/lotlip:0.1.0-cuda",
            "REGION": REGION,
        }
        text = (FOLDER / "cluster.yaml").read_text()
        for placeholder, name in names.items():
            text = text.replace(placeholder, name)
        yield yaml.safe_load(text)
    for cache in (client_cache, resource_cache, _get_subnets_or_die):
        cache.cache_clear()


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """What this process asks of AWS."""
    operations: set[str] = set()
    call: Any = BaseClient._make_api_call  # pyright: ignore[reportAttributeAccessIssue]

    def noted(self: BaseClient, operation: str, arguments: dict[str, Any]) -> Any:
        operations.add(f"{self.meta.service_model.service_name}:{operation}")
        return call(self, operation, arguments)

    monkeypatch.setattr(BaseClient, "_make_api_call", noted)
    return operations


@pytest.mark.slow
def test_rays_own_code_starts_and_ends_nodes_of_every_kind_with_the_rights_of_the_head(
    filled: Config, asked: set[str]
):
    config = prepared(filled)
    config = AWSNodeProvider.fillout_available_node_types_resources(config)
    config = AWSNodeProvider.bootstrap_config(config)
    # What the file says of resources is what AWS says of these instances.
    kinds = config["available_node_types"]
    for name in ("cpu", "gpu_spot", "gpu"):
        told = filled["available_node_types"][name]["resources"]
        assert {key: kinds[name]["resources"][key] for key in told} == told, name
    ec2 = boto3.client("ec2", region_name=REGION)
    (group,) = kinds["head"]["node_config"]["SecurityGroupIds"]
    rules = ec2.describe_security_groups(GroupIds=[group])["SecurityGroups"][0]["IpPermissions"]
    assert rules == [], "Ray opened something"

    asked.clear()
    provider = AWSNodeProvider(config["provider"], config["cluster_name"])
    for name, kind in kinds.items():
        provider.create_node(kind["node_config"], {"ray-user-node-type": name}, 1)
    nodes = provider.non_terminated_nodes({})
    provider.set_node_tags(nodes[0], {"ray-node-status": "up-to-date"})
    reservations = ec2.describe_instances()["Reservations"]
    instances = [instance for each in reservations for instance in each["Instances"]]
    provider.terminate_nodes(nodes)

    assert len(instances) == len(kinds)
    for instance in instances:
        assert instance["MetadataOptions"]["HttpTokens"] == "required"
        assert [each["GroupId"] for each in instance["SecurityGroups"]] == [group]
        assert "PublicIpAddress" not in instance
    spot = [each for each in instances if each.get("InstanceLifecycle") == "spot"]
    assert [each["InstanceType"] for each in spot] == ["g6e.12xlarge"]
    policy = json.loads((FOLDER / "head-policy.json").read_text())
    allowed = {action for statement in policy["Statement"] for action in statement["Action"]}
    assert allowed == asked | {"iam:PassRole"}


@pytest.mark.slow
def test_a_mistyped_key_of_a_node_is_refused_by_the_client_of_ec2(filled: Config):
    config = AWSNodeProvider.bootstrap_config(prepared(filled))
    node = config["available_node_types"]["cpu"]["node_config"]
    node["IamInstanceProfil"] = node.pop("IamInstanceProfile")
    provider = AWSNodeProvider(config["provider"], config["cluster_name"])
    with pytest.raises(ParamValidationError, match="IamInstanceProfil"):
        provider.create_node(node, {}, 1)
