"""The fields of KubeRay's RayCluster and RayJob (ray.io/v1, KubeRay 1.7), so that a wrong one is told at once.

Pod templates and all else of Kubernetes' own is plain here; `kuberay.py` holds that against Kubernetes' schema.
"""

from typing import Annotated, Any, Literal

from pydantic import Field

from trainables.fields import Strict

Count = Annotated[int, Field(ge=0)]
Plain = dict[str, Any]


class AuthOptions(Strict):
    """Who may use the cluster."""

    mode: Literal["disabled", "token"] | None = None
    secretName: str | None = None
    enableK8sTokenAuth: bool | None = None


class AutoscalerOptions(Strict):
    """The autoscaler's container."""

    version: Literal["v1", "v2"] | None = None
    idleTimeoutSeconds: Count | None = None
    upscalingMode: Literal["Default", "Aggressive", "Conservative"] | None = None
    resources: Plain | None = None
    image: str | None = None
    imagePullPolicy: Literal["Always", "IfNotPresent", "Never"] | None = None
    securityContext: Plain | None = None
    env: list[Plain] = []
    envFrom: list[Plain] = []
    volumeMounts: list[Plain] = []
    command: list[str] = []
    args: list[str] = []


class HeadGroupSpec(Strict):
    """The head's pod."""

    template: Plain
    rayStartParams: dict[str, str] = {}
    serviceType: Literal["ClusterIP", "NodePort", "LoadBalancer", "ExternalName"] | None = None
    headService: Plain | None = None
    enableIngress: bool | None = None
    ingressOptions: Plain | None = None
    resources: dict[str, str] | None = None
    labels: dict[str, str] | None = None


class WorkerGroupSpec(Strict):
    """Pods of one kind."""

    groupName: str
    template: Plain
    rayStartParams: dict[str, str] = {}
    minReplicas: Count
    maxReplicas: Count
    replicas: Count | None = None
    numOfHosts: Count | None = None
    idleTimeoutSeconds: Count | None = None
    priority: int | None = None
    suspend: bool | None = None
    scaleStrategy: Plain | None = None
    resources: dict[str, str] | None = None
    labels: dict[str, str] | None = None


class RayClusterSpec(Strict):
    """A cluster."""

    headGroupSpec: HeadGroupSpec
    workerGroupSpecs: list[WorkerGroupSpec] = []
    rayVersion: str | None = None
    authOptions: AuthOptions | None = None
    enableInTreeAutoscaling: bool | None = None
    autoscalerOptions: AutoscalerOptions | None = None
    gcsFaultToleranceOptions: Plain | None = None
    historyServerOptions: Plain | None = None
    headServiceAnnotations: dict[str, str] | None = None
    networkPolicy: Plain | None = None
    tlsOptions: Plain | None = None
    upgradeStrategy: Plain | None = None
    managedBy: str | None = None
    suspend: bool | None = None


class RayJobSpec(Strict):
    """A job, with the cluster that is made for it, or on one that there is."""

    entrypoint: str = ""
    rayClusterSpec: RayClusterSpec | None = None
    clusterSelector: dict[str, str] = {}
    submissionMode: Literal["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"] = "K8sJobMode"
    submitterPodTemplate: Plain | None = None
    submitterConfig: Plain | None = None
    backoffLimit: Count = 0
    shutdownAfterJobFinishes: bool = False
    ttlSecondsAfterFinished: Count = 0
    activeDeadlineSeconds: Annotated[int, Field(gt=0)] | None = None
    preRunningDeadlineSeconds: Annotated[int, Field(gt=0)] | None = None
    deletionStrategy: Plain | None = None
    runtimeEnvYAML: str | None = None
    entrypointNumCpus: float | None = None
    entrypointNumGpus: float | None = None
    entrypointResources: str | None = None
    metadata: dict[str, str] = {}
    jobId: str | None = None
    managedBy: str | None = None
    suspend: bool = False


SPECS = {"RayCluster": RayClusterSpec, "RayJob": RayJobSpec}
