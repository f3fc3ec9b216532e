"""Checks of Kubernetes manifests with a RayCluster or a RayJob in them."""

import shlex
from typing import Any

from pydantic import ValidationError

from search.clusters.findings import Findings, Trial, check_storage
from search.clusters.manifests import SPECS, RayClusterSpec, RayJobSpec
from search.clusters.pods import check_images, check_pod, check_structure, enumerated, node_kinds
from trainables.errors import InputError

STORAGE = "ofakd/storage"
EXAMPLE = "s3://BUCKET/FOLDER"
PUBLIC = ("LoadBalancer", "NodePort")


def check_manifests(documents: list[dict[str, Any]], trial: Trial) -> Findings:
    """What is to be said of a file of manifests, as read from YAML."""
    findings, said = Findings(), []
    for number, document in enumerate(documents, 1):
        kind, version, metadata = (document.get(field) for field in ("kind", "apiVersion", "metadata"))
        if not isinstance(kind, str) or not isinstance(version, str) or not isinstance(metadata, dict):
            findings.problem(f"document {number}", "is no manifest; give apiVersion, kind and metadata")
            continue
        name = metadata.get("name")
        if not name:
            findings.problem(f"{kind}: metadata.name", "missing; give a name of its own")
        if kind not in SPECS:
            check_structure(findings, kind, document)
            _check_open(findings, kind, document)
            continue
        if version != "ray.io/v1":
            findings.problem(f"{kind}: apiVersion", f"'{version}' is not KubeRay's; give ray.io/v1")
        spec = _spec(findings, kind, document)
        if spec is None:
            continue
        if kind == "RayJob":
            storage = _check_job(findings, spec)
            cluster, place = spec.rayClusterSpec, "RayJob: spec.rayClusterSpec"
        else:
            cluster, place = spec, "RayCluster: spec"
            annotations = metadata.get("annotations")
            storage = annotations.get(STORAGE) if isinstance(annotations, dict) else None
            check_storage(findings, f"RayCluster: metadata.annotations.{STORAGE}", storage, EXAMPLE)
        if cluster:
            _check_cluster(findings, place, cluster, trial)
            groups = ", ".join(f"{group.groupName} up to {group.maxReplicas}" for group in cluster.workerGroupSpecs)
            said.append(f"{kind} {name}; {groups}; --storage {storage}")
        else:
            said.append(f"{kind} {name}; --storage {storage}")
    if not said and not findings.problems:
        raise InputError("document 1: no RayCluster and no RayJob in it; give a file that has one")
    findings.summary = "; ".join(said)
    return findings


def _spec(findings: Findings, kind: str, document: dict[str, Any]) -> RayClusterSpec | RayJobSpec | None:
    """The spec with its fields read, None where some are wrong."""
    try:
        return SPECS[kind].model_validate(document.get("spec") or {})
    except ValidationError as error:
        for problem in error.errors():
            place = ".".join(map(str, ("spec", *problem["loc"])))
            what = "KubeRay knows no such field; remove it" if problem["type"] == "extra_forbidden" else problem["msg"]
            findings.problem(f"{kind}: {place}", "missing; add it" if problem["type"] == "missing" else what)
    return None


def _check_cluster(findings: Findings, place: str, cluster: RayClusterSpec, trial: Trial) -> None:
    if not cluster.authOptions or cluster.authOptions.mode != "token":
        findings.problem(f"{place}.authOptions.mode", "nobody is asked for a token, on head and workers; give token")
    head = cluster.headGroupSpec
    service = ((head.headService or {}).get("spec") or {}).get("type")
    for field, value in (("serviceType", head.serviceType), ("headService.spec.type", service)):
        if value in PUBLIC:
            findings.problem(
                f"{place}.headGroupSpec.{field}",
                f"{value} opens the dashboard, which runs anybody's code, beyond Kubernetes; give ClusterIP and reach "
                "it by kubectl port-forward",
            )
    if head.enableIngress:
        findings.problem(
            f"{place}.headGroupSpec.enableIngress", "opens the dashboard to whoever reaches the ingress; give false"
        )
    if head.rayStartParams.get("num-cpus") != "0":
        findings.warn(
            f"{place}.headGroupSpec.rayStartParams",
            'trials may run on the head and take its driver\'s CPUs; give num-cpus: "0"',
        )
    scaled = any(group.maxReplicas > (group.replicas or group.minReplicas) for group in cluster.workerGroupSpecs)
    if scaled and not cluster.enableInTreeAutoscaling:
        findings.problem(f"{place}.enableInTreeAutoscaling", "no autoscaler, so no further worker comes; give true")
    elif scaled and (cluster.autoscalerOptions is None or cluster.autoscalerOptions.version != "v2"):
        findings.problem(
            f"{place}.autoscalerOptions.version", "v1 knows no priorities and drains no node it removes; give v2"
        )
    groups = [("headGroupSpec", head), *enumerated(cluster)]
    if all([check_pod(findings, f"{place}.{name}.template", group.template) for name, group in groups]):
        check_images(findings, place, cluster)
        node_kinds(findings, place, cluster, trial)


def _check_job(findings: Findings, job: RayJobSpec) -> str | None:
    """What is particular to a RayJob; returns the storage of its study."""
    if not job.rayClusterSpec and not job.clusterSelector:
        findings.problem("RayJob: spec.rayClusterSpec", "missing, and no clusterSelector; give one of the two")
    if job.submitterPodTemplate:
        check_pod(findings, "RayJob: spec.submitterPodTemplate", job.submitterPodTemplate)
    if job.ttlSecondsAfterFinished and not job.shutdownAfterJobFinishes:
        findings.problem(
            "RayJob: spec.ttlSecondsAfterFinished",
            "KubeRay refuses it alone; add shutdownAfterJobFinishes: true",
        )
    elif not job.shutdownAfterJobFinishes and job.rayClusterSpec:
        findings.warn("RayJob: spec.shutdownAfterJobFinishes", "the nodes stay, and cost, when the study has ended")
    if job.backoffLimit and job.clusterSelector:
        findings.problem("RayJob: spec.backoffLimit", "KubeRay refuses it beside clusterSelector; remove one of them")
    place = "RayJob: spec.entrypoint"
    try:
        words = shlex.split(job.entrypoint)
    except ValueError as error:
        findings.problem(place, f"is no command ({error}); correct its quotes")
        return None
    if not words:
        findings.problem(place, "missing; give the study's command")
        return None
    flags = {}
    for number, word in enumerate(words):
        if word.startswith("--"):
            name, equals, value = word.partition("=")
            flags[name] = value if equals else " ".join(words[number + 1 : number + 2])
    check_storage(findings, f"{place} --storage", flags.get("--storage"), f"--storage {EXAMPLE}")
    if "--address" not in flags:
        findings.problem(f"{place} --address", "missing, so all would train on the head; add --address auto")
    if "--name" not in flags:
        findings.problem(f"{place} --name", "missing, so each try would be a study of its own; give the study a name")
    goes_on = "--resume" in flags or any(word.endswith("study.sh") for word in words)
    if job.backoffLimit and not goes_on:
        findings.problem(
            place,
            "a second try would be refused, since the study exists; begin it with bash clusters/study.sh",
        )
    return flags.get("--storage")


def _check_open(findings: Findings, kind: str, document: dict[str, Any]) -> None:
    """Manifests beside the cluster that would open it, or show what is secret."""
    spec = document.get("spec") or {}
    if kind == "Service" and spec.get("type") in PUBLIC:
        findings.problem("Service: spec.type", f"{spec['type']} opens it beyond Kubernetes; give ClusterIP")
    if kind == "Ingress":
        findings.problem("Ingress: kind", "opens what it leads to; remove it, use kubectl port-forward")
    if kind == "Secret" and (document.get("data") or document.get("stringData")):
        findings.problem("Secret: data", "a secret in a file that is shared; make it by kubectl create secret")
