"""Checks of the pods of a KubeRay cluster: Kubernetes' own schema, images, what a worker has, and what is open."""

import math
from typing import Any

from search.clusters.findings import RAY_IMAGE, Findings, NodeKind, Trial, check_image, check_kinds, ray_version
from search.clusters.manifests import RayClusterSpec, WorkerGroupSpec
from trainables.errors import InputError

GPU = "nvidia.com/gpu"
KUBERAYS = {"app.kubernetes.io/name", "app.kubernetes.io/created-by"}


def check_structure(findings: Findings, place: str, document: dict[str, Any], within: str = "") -> bool:
    """Holds a manifest of Kubernetes' own against its schema, unknown fields included, and tells the first problem.

    Args:
        within: where the manifest begins in the file.

    Returns:
        Whether it is sound.

    Raises:
        InputError: the package with the schemas is not installed.
    """
    try:
        import kubernetes_validate as schemas
    except ImportError as error:
        raise InputError("kubernetes-validate is not installed; run `make setup`, or install it") from error
    try:
        schemas.validate(document, schemas.latest_version(), strict=True)
    except schemas.ValidationError as error:
        path = [within, *map(str, error.absolute_path)]
        text = " ".join(error.message.split())[:200]
        findings.problem(f"{place}: {'.'.join(filter(None, path)) or 'fields'}", f"{text}; correct it")
        return False
    except schemas.SchemaNotFoundError:
        findings.warn(f"{place}: apiVersion", f"{document['apiVersion']} is none of Kubernetes' own; not checked")
    return True


def check_pod(findings: Findings, place: str, template: dict[str, Any]) -> bool:
    """One pod template: Kubernetes' schema, and nothing that opens or gives away; returns whether it has the schema."""
    kind, _, within = place.partition(": ")
    spec = template.get("spec")
    containers = spec.get("containers") if isinstance(spec, dict) else None
    if not isinstance(containers, list) or not containers or None in containers:
        findings.problem(f"{place}.spec.containers", "missing; give the container")
        return False
    # A template is a Pod without its first two fields; its name is KubeRay's.
    if not check_structure(findings, kind, {"apiVersion": "v1", "kind": "Pod", **template}, within):
        return False
    for label in KUBERAYS & set((template.get("metadata") or {}).get("labels") or {}):
        findings.problem(
            f"{place}.metadata.labels", f"{label} is how KubeRay's service finds the head; take another label"
        )
    if spec.get("hostNetwork"):
        findings.problem(f"{place}.spec.hostNetwork", "puts Ray's ports on the node's own address; remove it")
    for container in containers:
        where = f"{place}.spec.containers.{container['name']}"
        if any(port and port.get("hostPort") for port in container.get("ports") or []):
            findings.problem(f"{where}.ports", "hostPort puts a port of Ray's on the node's own address; remove it")
        for variable in filter(None, container.get("env") or []):
            if variable["name"] == "RAY_AUTH_TOKEN" and variable.get("value"):
                findings.problem(f"{where}.env", "has Ray's token in it; remove it, KubeRay brings the token by itself")
            if variable["name"] == "RAY_AUTH_MODE" and variable.get("value") != "token":
                findings.problem(f"{where}.env", "RAY_AUTH_MODE asks nobody for a token; remove it")
    return True


def enumerated(cluster: RayClusterSpec) -> list[tuple[str, WorkerGroupSpec]]:
    """The worker groups, each with its place."""
    return [(f"workerGroupSpecs[{number}]", group) for number, group in enumerate(cluster.workerGroupSpecs)]


def check_images(findings: Findings, place: str, cluster: RayClusterSpec) -> None:
    """All nodes run one image, by a tag that stays, with the pinned Ray and our packages in it."""
    if cluster.rayVersion != ray_version():
        findings.problem(
            f"{place}.rayVersion", f'{cluster.rayVersion!r} is not requirements.txt\'s Ray; give "{ray_version()}"'
        )
    images = {}
    for name, group in [("headGroupSpec", cluster.headGroupSpec), *enumerated(cluster)]:
        where = f"{place}.{name}.template.spec.containers[0].image"
        image = images[where] = group.template["spec"]["containers"][0].get("image") or ""
        tag = image.rpartition("/")[2].partition(":")[2]
        if RAY_IMAGE.search(image):
            check_image(findings, where, image)
            findings.problem(where, f"'{image}' lacks our requirements; build clusters/Dockerfile and give that image")
        elif not tag or tag == "latest":
            findings.problem(where, f"'{image}' is another image tomorrow; give a tag that stays, or a digest")
    head = next(iter(images.values()))
    for where, image in images.items():
        if image != head:
            findings.problem(where, f"'{image}' is not the head's '{head}', so packages may differ; give one image")


def node_kinds(findings: Findings, place: str, cluster: RayClusterSpec, trial: Trial) -> None:
    """Whether a trial fits the worker groups."""
    kinds = []
    for name, group in enumerated(cluster):
        cpus, gpus = _has(group)
        kinds.append(NodeKind(f"{place}.{name}", cpus, gpus or 0, group.minReplicas, group.maxReplicas))
    check_kinds(findings, kinds, f"{place}.workerGroupSpecs", None, trial)


def _has(group: WorkerGroupSpec) -> tuple[float | None, float | None]:
    """CPUs and GPUs that Ray sees on a worker: as told, or the container's limits, rounded up as KubeRay does."""
    resources = group.template["spec"]["containers"][0].get("resources") or {}
    limits = {**(resources.get("requests") or {}), **(resources.get("limits") or {})}
    found = []
    for told, limit in (("num-cpus", "cpu"), ("num-gpus", GPU)):
        named = (group.resources or {}).get("CPU" if limit == "cpu" else "GPU")
        value = group.rayStartParams.get(told, named if named is not None else limits.get(limit))
        found.append(None if value is None else _quantity(value))
    return found[0], found[1]


def _quantity(value: Any) -> float | None:
    """A Kubernetes quantity of whole things, rounded up; None where it is none."""
    text = str(value)
    try:
        return float(math.ceil(float(text[:-1]) / 1000 if text.endswith("m") else float(text)))
    except ValueError:
        return None
