"""What is particular to a cloud: who may reach a node, and whether workers may reach the bucket."""

from typing import Any

from search.clusters.findings import Findings

WORLD = ("0.0.0.0/0", "::/0")
# GPUs of EC2's instances (aws.amazon.com/ec2/instance-types), by family and size; of other sizes there is one each.
_G = {"12xlarge": 4, "24xlarge": 4, "48xlarge": 8, "metal": 8}
_P4, _P5 = {"24xlarge": 8}, {"48xlarge": 8}
GPUS = {
    **{"g4dn": _G, "g5": _G, "g6": _G, "g6e": _G, "p3": {"8xlarge": 4, "16xlarge": 8}},
    **{"p3dn": _P4, "p4d": _P4, "p4de": _P4, "p5": _P5, "p5e": _P5, "p5en": _P5},
}


class AWS:
    """EC2, as Ray's launcher uses it."""

    scheme = "s3"

    @staticmethod
    def check_node(findings: Findings, place: str, node: dict[str, Any]) -> None:
        """One node type's node_config."""
        interfaces = node.get("NetworkInterfaces") or []
        if not node.get("SecurityGroupIds") and not any(interface.get("Groups") for interface in interfaces):
            findings.problem(
                f"{place}.SecurityGroupIds",
                "missing, and the launcher's own group opens port 22 to the world; give a group that does not",
            )
        if not node.get("IamInstanceProfile"):
            findings.problem(
                f"{place}.IamInstanceProfile", "missing, so its nodes could not reach the bucket; give a profile"
            )

    @staticmethod
    def check_resources(findings: Findings, place: str, node: dict[str, Any]) -> None:
        """GPUs that a node type states: those that it has not would be waited for, for ever."""
        instance, stated = node["node_config"].get("InstanceType", ""), node.get("resources", {}).get("GPU", 0)
        family, _, size = instance.partition(".")
        if family in GPUS and stated > (real := GPUS[family].get(size, 1)):
            findings.problem(f"{place}.resources.GPU", f"{stated:g}, and {instance} has {real}; give GPU: {real}")

    @staticmethod
    def check_provider(findings: Findings, provider: dict[str, Any]) -> None:
        """The rules that a file adds to the launcher's group."""
        rules = (provider.get("security_group") or {}).get("IpPermissions") or []
        for number, rule in enumerate(rules):
            ranges = [entry.get("CidrIp") for entry in rule.get("IpRanges") or []]
            ranges += [entry.get("CidrIpv6") for entry in rule.get("Ipv6Ranges") or []]
            if open_to := next((address for address in ranges if address in WORLD), None):
                ports = f"{rule.get('FromPort', 'all')} to {rule.get('ToPort', 'all')}"
                findings.problem(
                    f"provider.security_group.IpPermissions[{number}]",
                    f"opens ports {ports} to the world ({open_to}); give the addresses that need them",
                )


class GCP:
    """Compute Engine, as Ray's launcher uses it; its firewall is no part of the file."""

    scheme = "gs"

    @staticmethod
    def check_node(findings: Findings, place: str, node: dict[str, Any]) -> None:
        """One node type's node_config."""
        if not node.get("serviceAccounts"):
            findings.problem(
                f"{place}.serviceAccounts", "missing, so its nodes could not reach the bucket; give an account"
            )

    @staticmethod
    def check_resources(findings: Findings, place: str, node: dict[str, Any]) -> None:
        """Nothing: GPUs are stated in the node_config itself."""

    @staticmethod
    def check_provider(findings: Findings, provider: dict[str, Any]) -> None:
        """Its project must be named, Ray's default is null."""
        if not provider.get("project_id"):
            findings.problem("provider.project_id", "missing; give the project's id")


CLOUDS = {"aws": AWS, "gcp": GCP}
