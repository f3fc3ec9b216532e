"""Ray's own AWS provider starts nodes of ray_cluster.yaml, on a server that speaks EC2's and IAM's API."""

import copy

import pytest
import yaml

from search.clusters.check import PLACEHOLDER
from tests.search.studies import ROOT


@pytest.fixture
def config(tmp_path, monkeypatch):
    """The file with everything filled in that AWS must have, as `ray up` completes it."""
    from moto import mock_aws

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "none")
    monkeypatch.setenv("HOME", str(tmp_path))  # the launcher keeps the key pair that it makes there
    (tmp_path / ".ssh").mkdir()
    monkeypatch.chdir(ROOT)
    with mock_aws():
        import boto3
        from ray.autoscaler._private.aws.config import bootstrap_aws
        from ray.autoscaler._private.util import prepare_config

        text = (ROOT / "ray_cluster.yaml").read_text()
        region = yaml.safe_load(text)["provider"]["region"]
        ec2, iam = boto3.resource("ec2", region), boto3.client("iam", region)
        [network] = ec2.vpcs.all()
        group = ec2.create_security_group(GroupName="ofakd", Description="ofakd", VpcId=network.id)
        for kind in ("head", "worker"):
            iam.create_instance_profile(InstanceProfileName=f"{PLACEHOLDER}-ofakd-{kind}")
        text = text.replace(f"ami-{PLACEHOLDER}", next(image.id for image in ec2.images.all()))
        yield bootstrap_aws(prepare_config(yaml.safe_load(text.replace(f"sg-{PLACEHOLDER}", group.id)))), group.id


def test_nodes_start_as_described(config):
    from ray.autoscaler._private.aws.node_provider import AWSNodeProvider

    config, group = config
    provider = AWSNodeProvider(config["provider"], config["cluster_name"])
    started = {}
    for name, kind in config["available_node_types"].items():
        tags = {"ray-node-name": name, "ray-user-node-type": name}
        [node] = provider.create_node(copy.deepcopy(kind["node_config"]), tags, 1).values()
        started[name] = (node.instance_lifecycle, node.iam_instance_profile["Arn"].rpartition("-")[2])
        assert [entry["GroupId"] for entry in node.security_groups] == [group]
        assert {"Key": "project", "Value": "ofakd"} in node.tags
    assert started == {
        "head": (None, "head"),
        "gpu_on_demand": (None, "worker"),
        "gpu_spot": ("spot", "worker"),
    }


def test_workers_have_what_is_said_and_the_head_offers_nothing(config):
    """Ray fills in what an instance type has where a file does not say it."""
    from ray.autoscaler._private.aws.node_provider import AWSNodeProvider

    config, _ = config
    said = {name: dict(kind["resources"]) for name, kind in config["available_node_types"].items()}
    silent = copy.deepcopy(config)
    for kind in silent["available_node_types"].values():
        kind["resources"] = {}
    found = AWSNodeProvider.fillout_available_node_types_resources(silent)["available_node_types"]
    for name in ("gpu_on_demand", "gpu_spot"):
        assert {key: found[name]["resources"][key] for key in ("CPU", "GPU")} == said[name]
    assert found["head"]["resources"]["CPU"] == 4 and said["head"] == {"CPU": 0}
