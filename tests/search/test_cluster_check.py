"""Our cluster descriptions are sound, and each fault planted in them is told by its line and no other."""

import subprocess
import sys

import pytest
import yaml

from search import cluster_check
from search.cluster_jobs import STOP_WAIT_S
from search.clusters.check import check_file
from search.clusters.findings import Trial
from tests.search.studies import ROOT
from trainables.errors import InputError

GONE = object()
AWS, GCP, CLUSTER, JOB = cluster_check.OURS
NODE = "available_node_types.gpu_spot"
GROUP = "workerGroupSpecs.0"
CONTAINER = f"{GROUP}.template.spec.containers.0"
OPEN_DASHBOARD = (
    "--dashboard-host=0.0.0.0 opens the dashboard, which runs anybody's code, to the network; give "
    "--dashboard-host=127.0.0.1 and reach it through `ray dashboard`"
)
NO_TOKEN = "starts Ray without asking for the token; begin it with export RAY_AUTH_MODE=token;"
LOCAL = "is local to one node and goes with it; give a bucket:"
UNPINNED = "installs what no hash pins; add --require-hashes -r requirements.txt"
NO_FIT = "so nothing ever runs there; take larger nodes or smaller workers"


def put(value, path: str, new) -> None:
    """Sets, or takes away, what a dotted path leads to; numbers are places in lists."""
    *before, last = path.replace("\\.", "\0").split(".")
    for step in before:
        value = value[int(step)] if isinstance(value, list) else value[step.replace("\0", ".")]
    last = int(last) if isinstance(value, list) else last.replace("\0", ".")
    if new is GONE:
        del value[last]
    else:
        value[last] = new(value[last]) if callable(new) else new


def problems_of(path, trial=None) -> list[str]:
    try:
        check_file(path, trial or Trial())
    except InputError as error:
        return error.problems
    return []


def edited(folder, name: str, edits: dict) -> list[str]:
    """What is told of one of our files after some edits, of manifests in the RayCluster or RayJob."""
    documents = [apart(document) for document in yaml.safe_load_all((ROOT / name).read_text())]
    main = next((document for document in documents if document.get("apiVersion") == "ray.io/v1"), documents[0])
    for path, new in edits.items():
        put(main, path, new)
    path = folder / "cluster.yaml"
    path.write_text(yaml.safe_dump_all(documents))
    return problems_of(path)


def apart(value):
    """A copy without shared parts, which YAML's anchors make."""
    if isinstance(value, dict):
        return {key: apart(part) for key, part in value.items()}
    return [apart(part) for part in value] if isinstance(value, list) else value


def added(text: str):
    return lambda before: [*before, text]


def swapped(old: str, new: str):
    def swap(before: str) -> str:
        assert old in before
        return before.replace(old, new)

    return swap


LAUNCHER = {
    "no name": ({"cluster_name": GONE}, "cluster_name: missing; give one that no other cluster of the account has"),
    "an empty name": ({"cluster_name": ""}, "cluster_name: missing; give one that no other cluster of the account has"),
    "an unknown field": ({"max_worker": 3}, "max_worker: Ray knows no such field; did you mean max_workers?"),
    "an unknown field of a type": (
        {f"{NODE}.instance": "g6"},
        f"{NODE}.instance: Ray knows no such field; remove it",
    ),
    "a wrong type": ({"max_workers": "ten"}, "max_workers: 'ten' is not of type 'integer'; give a integer"),
    "a number below its least": ({"max_workers": -1}, "max_workers: -1 is less than the minimum of 0; correct it"),
    "a type without resources": ({f"{NODE}.resources": GONE}, f"{NODE}.resources: missing; add it"),
    "no provider": ({"provider": GONE}, "provider: missing; add it"),
    "a provider that Ray has not": (
        {"provider.type": "hetzner"},
        "provider: Ray refuses it (NotImplementedError: Unsupported node provider: hetzner); correct it",
    ),
    "a head that is no type": (
        {"head_node_type": "boss"},
        "head_node_type: Ray refuses it (ValueError: `head_node_type` must be one of "
        "`available_node_types`.); correct it",
    ),
    "more least than most together": (
        {"available_node_types.gpu_spot.min_workers": 8, "max_workers": 4},
        "max_workers: Ray refuses it (ValueError: The specified global `max_workers` is smaller than the sum of "
        "`min_workers` of all the available node types.); correct it",
    ),
    "no storage": ({"metadata": GONE}, "metadata.storage: does not say where studies are kept; give a bucket: "),
    "a folder as storage": ({"metadata.storage": "/data/ofakd"}, f"metadata.storage: '/data/ofakd' {LOCAL} "),
    "a file URL as storage": ({"metadata.storage": "file:///data"}, f"metadata.storage: 'file:///data' {LOCAL} "),
    "memory as storage": ({"metadata.storage": "memory://x/y"}, f"metadata.storage: 'memory://x/y' {LOCAL} "),
    "a server as storage": ({"metadata.storage": "http://h/x"}, "metadata.storage: 'http://h/x' is no bucket's URL; "),
    "a name with a space": ({"metadata.storage": "s3://a b/x"}, "metadata.storage: 's3://a b/x' is no bucket's URL; "),
    "a bucket without a name": ({"metadata.storage": "s3:///ofakd"}, f"metadata.storage: 's3:///ofakd' {LOCAL} "),
    "a public dashboard": (
        {"head_start_ray_commands.1": swapped("--dashboard-host=127.0.0.1", "--dashboard-host 0.0.0.0")},
        f"head_start_ray_commands[1]: {OPEN_DASHBOARD}",
    ),
    "a head without the token": (
        {"head_start_ray_commands.1": swapped("RAY_AUTH_MODE=token", "")},
        f"head_start_ray_commands[1]: {NO_TOKEN}",
    ),
    "workers with the token off": (
        {"worker_start_ray_commands.1": swapped("RAY_AUTH_MODE=token", "RAY_AUTH_MODE=disabled")},
        f"worker_start_ray_commands[1]: {NO_TOKEN}",
    ),
    "a token that is unset": (
        {"worker_start_ray_commands.1": swapped("ulimit", "unset RAY_AUTH_MODE; ulimit")},
        f"worker_start_ray_commands[1]: {NO_TOKEN}",
    ),
    "a token that is brought elsewhere": (
        {"file_mounts": lambda before: {path.replace("~/.ray", "/tmp"): at for path, at in before.items()}},
        "file_mounts: brings no token to the nodes; add ~/.ray/auth_token: ~/.ray/auth_token",
    ),
    "a second start that asks for no token": (
        {"head_start_ray_commands.1": lambda before: f"{before}\nRAY_AUTH_MODE=disabled ray start --address=other"},
        f"head_start_ray_commands[1]: {NO_TOKEN}",
    ),
    "a token for another command": (
        {"worker_start_ray_commands.1": swapped("RAY_AUTH_MODE=token;", "; RAY_AUTH_MODE=token ray status;")},
        f"worker_start_ray_commands[1]: {NO_TOKEN}",
    ),
    "a public dashboard in quotes": (
        {
            "head_start_ray_commands.1": "bash -lc 'export RAY_AUTH_MODE=token; ray start --head "
            "--autoscaling-config=~/ray_bootstrap_config.yaml --dashboard-host=0.0.0.0'"
        },
        f"head_start_ray_commands[1]: {OPEN_DASHBOARD}",
    ),
    "a token that is not brought": (
        {"file_mounts": lambda before: {path: at for path, at in before.items() if "auth_token" not in path}},
        "file_mounts: brings no token to the nodes; add ~/.ray/auth_token: ~/.ray/auth_token",
    ),
    "a token in the file": (
        {"worker_start_ray_commands.1": swapped("RAY_AUTH_MODE", "RAY_AUTH_TOKEN=0123abcd RAY_AUTH_MODE")},
        "worker_start_ray_commands[1]: has Ray's token in it; keep it in a file that file_mounts brings, "
        "~/.ray/auth_token",
    ),
    "no autoscaler": (
        {"head_start_ray_commands.1": swapped("--autoscaling-config=~/ray_bootstrap_config.yaml", "")},
        "head_start_ray_commands[1]: no autoscaler, so no worker ever comes; add "
        "--autoscaling-config=~/ray_bootstrap_config.yaml",
    ),
    "workers without Ray": (
        {"worker_start_ray_commands": []},
        "worker_start_ray_commands: has no `ray start`, so Ray would not run there; add it",
    ),
    "an unpinned package": (
        {"setup_commands": added("pip3 install -U torch && echo done")},
        f"setup_commands[7]: 'pip3 install -U torch' {UNPINNED}",
    ),
    "an unpinned package by uv": (
        {"worker_setup_commands": added("~/uv/bin/uv pip install torch")},
        f"worker_setup_commands[0]: '~/uv/bin/uv pip install torch' {UNPINNED}",
    ),
    "a node that is too small": (
        {f"{NODE}.resources": {"CPU": 8}},
        f"{NODE}: a node has 8 CPU and 0 GPU, a trial's worker asks for 1 CPU and 1 GPU, {NO_FIT}",
    ),
    "no workers at all": ({"max_workers": 0}, "max_workers: 0, so no worker ever starts; allow 1 or more"),
    "a type of none": (
        {f"{NODE}.max_workers": 0},
        f"{NODE}: at most 0 nodes, so it never starts; allow 1 or more, or remove it",
    ),
    "a type's least above its most": (
        {f"{NODE}.min_workers": 9, f"{NODE}.max_workers": 8},
        f"{NODE}: at least 9 nodes, but at most 8; make them agree",
    ),
    "only a head": (
        {"available_node_types.gpu_spot": GONE, "available_node_types.gpu_on_demand": GONE},
        "available_node_types: no type of workers, so nothing would ever train; add one",
    ),
    "an image of another Ray": (
        {"docker": {"image": "rayproject/ray:2.59.0-py311-gpu", "container_name": "ray"}},
        "docker.image: 'rayproject/ray:2.59.0-py311-gpu' is another Ray than requirements.txt's; take 2.60.0",
    ),
}
FROM_AWS = {
    "no security group": (
        {f"{NODE}.node_config.SecurityGroupIds": GONE},
        f"{NODE}.node_config.SecurityGroupIds: missing, and the launcher's own group opens port 22 to the world; give "
        "a group that does not",
    ),
    "a port open to the world": (
        {
            "provider.security_group": {
                "IpPermissions": [
                    {"FromPort": 8265, "ToPort": 8265, "IpProtocol": "tcp", "IpRanges": [{"CidrIp": "0.0.0.0/0"}]}
                ]
            }
        },
        "provider.security_group.IpPermissions[0]: opens ports 8265 to 8265 to the world (0.0.0.0/0); give the "
        "addresses that need them",
    ),
    "workers without a profile": (
        {f"{NODE}.node_config.IamInstanceProfile": GONE},
        f"{NODE}.node_config.IamInstanceProfile: missing, so its nodes could not reach the bucket; give a profile",
    ),
    "more GPUs than the instance has": (
        {f"{NODE}.resources.GPU": 8},
        f"{NODE}.resources.GPU: 8, and g6.2xlarge has 1; give GPU: 1",
    ),
    "Ray's own set-up of the head": (
        {"head_setup_commands": GONE},
        "head_setup_commands[0] (Ray's default: the file has none): 'pip install 'boto3>=1.4.8'' installs what",
    ),
}
FROM_GCP = {
    "no project": ({"provider.project_id": GONE}, "provider.project_id: missing; give the project's id"),
    "workers without an account": (
        {f"{NODE}.node_config.serviceAccounts": GONE},
        f"{NODE}.node_config.serviceAccounts: missing, so its nodes could not reach the bucket; give an account",
    ),
}
MANIFEST = {
    "no token": (
        {"authOptions": GONE},
        "authOptions.mode: nobody is asked for a token, on head and workers; give token",
    ),
    "the token off": (
        {"authOptions.mode": "disabled"},
        "authOptions.mode: nobody is asked for a token, on head and workers; give token",
    ),
    "a public service": (
        {"headGroupSpec.serviceType": "LoadBalancer"},
        "headGroupSpec.serviceType: LoadBalancer opens the dashboard, which runs anybody's code, beyond Kubernetes; "
        "give ClusterIP and reach it by kubectl port-forward",
    ),
    "a node's port as service": (
        {"headGroupSpec.headService": {"spec": {"type": "NodePort"}}},
        "headGroupSpec.headService.spec.type: NodePort opens the dashboard, which runs anybody's code, beyond "
        "Kubernetes; give ClusterIP and reach it by kubectl port-forward",
    ),
    "an ingress": (
        {"headGroupSpec.enableIngress": True},
        "headGroupSpec.enableIngress: opens the dashboard to whoever reaches the ingress; give false",
    ),
    "an unknown field": ({"maxWorkers": 3}, "maxWorkers: KubeRay knows no such field; remove it"),
    "a number for a word": (
        {"headGroupSpec.rayStartParams.num-cpus": 0},
        "headGroupSpec.rayStartParams.num-cpus: Input should be a valid string",
    ),
    "no most": ({f"{GROUP}.maxReplicas": GONE}, f"{GROUP}.maxReplicas: missing; add it"),
    "an unknown field of a pod": (
        {f"{CONTAINER}.imagePolicy": "Always"},
        "workerGroupSpecs[0].template.spec.containers.0: Additional properties are not allowed ('imagePolicy' was "
        "unexpected); correct it",
    ),
    "a pod without containers": (
        {f"{GROUP}.template.spec": {}},
        "workerGroupSpecs[0].template.spec.containers: missing; give the container",
    ),
    "no autoscaler": (
        {"enableInTreeAutoscaling": False},
        "enableInTreeAutoscaling: no autoscaler, so no further worker comes; give true",
    ),
    "the old autoscaler": (
        {"autoscalerOptions.version": "v1"},
        "autoscalerOptions.version: v1 knows no priorities and drains no node it removes; give v2",
    ),
    "another Ray": ({"rayVersion": "2.59.0"}, "rayVersion: '2.59.0' is not requirements.txt's Ray; give \"2.60.0\""),
    "different images": (
        {f"{CONTAINER}.image": "other/ofakd:1"},
        "workerGroupSpecs[0].template.spec.containers[0].image: 'other/ofakd:1' is not the head's "
        "'CHANGE-ME/ofakd:ray-2.60.0', so packages may differ; give one image",
    ),
    "a group of none": (
        {f"{GROUP}.maxReplicas": 0},
        "workerGroupSpecs[0]: at most 0 nodes, so it never starts; allow 1 or more, or remove it",
    ),
    "a worker that is too small": (
        {f"{CONTAINER}.resources": {"limits": {"cpu": "7"}}},
        f"workerGroupSpecs[0]: a node has 7 CPU and 0 GPU, a trial's worker asks for 1 CPU and 1 GPU, {NO_FIT}",
    ),
    "no groups": (
        {"workerGroupSpecs": []},
        "workerGroupSpecs: no type of workers, so nothing would ever train; add one",
    ),
    "the node's network": (
        {f"{GROUP}.template.spec.hostNetwork": True},
        "workerGroupSpecs[0].template.spec.hostNetwork: puts Ray's ports on the node's own address; remove it",
    ),
    "a label of KubeRay's own": (
        {"headGroupSpec.template.metadata.labels": {"app.kubernetes.io/name": "ofakd"}},
        "headGroupSpec.template.metadata.labels: app.kubernetes.io/name is how KubeRay's service finds the head; take "
        "another label",
    ),
    "a port on the node": (
        {"headGroupSpec.template.spec.containers.0.ports.1.hostPort": 8265},
        "headGroupSpec.template.spec.containers.ray-head.ports: hostPort puts a port of Ray's on the node's own "
        "address; remove it",
    ),
    "a token in the file": (
        {f"{CONTAINER}.env": [{"name": "RAY_AUTH_TOKEN", "value": "0123abcd"}]},
        "workerGroupSpecs[0].template.spec.containers.ray-worker.env: has Ray's token in it; remove it, KubeRay brings "
        "the token by itself",
    ),
}
OF_CLUSTERS = {
    "no storage": (
        {"metadata.annotations": GONE},
        "RayCluster: metadata.annotations.ofakd/storage: does not say where studies are kept; give a bucket: ",
    ),
    "no name": ({"metadata.name": GONE}, "RayCluster: metadata.name: missing; give a name of its own"),
    "another API": ({"apiVersion": "ray.io/v1alpha1"}, "RayCluster: apiVersion: 'ray.io/v1alpha1' is not KubeRay's"),
}
OF_JOBS = {
    "a folder as storage": (
        {"spec.entrypoint": swapped("s3://CHANGE-ME/ofakd", "runs")},
        f"RayJob: spec.entrypoint --storage: 'runs' {LOCAL} ",
    ),
    "no address": (
        {"spec.entrypoint": swapped("--address auto", "")},
        "RayJob: spec.entrypoint --address: missing, so all would train on the head; add --address auto",
    ),
    "no name of the study": (
        {"spec.entrypoint": swapped("--name vit-to-mlp", "")},
        "RayJob: spec.entrypoint --name: missing, so each try would be a study of its own; give the study a name",
    ),
    "a try that would be refused": (
        {"spec.entrypoint": swapped("bash /home/ray/ofakd/clusters/study.sh", "python search/run.py")},
        "RayJob: spec.entrypoint: a second try would be refused, since the study exists; begin it with bash "
        "clusters/study.sh",
    ),
    "no command": ({"spec.entrypoint": ""}, "RayJob: spec.entrypoint: missing; give the study's command"),
    "an open quote": (
        {"spec.entrypoint": "python 'search"},
        "RayJob: spec.entrypoint: is no command (No closing quotation); correct its quotes",
    ),
    "a time to live without an end": (
        {"spec.shutdownAfterJobFinishes": False},
        "RayJob: spec.ttlSecondsAfterFinished: KubeRay refuses it alone; add shutdownAfterJobFinishes: true",
    ),
    "no cluster": (
        {"spec.rayClusterSpec": GONE},
        "RayJob: spec.rayClusterSpec: missing, and no clusterSelector; give one of the two",
    ),
}


def cases():
    for name, faults in ((AWS, LAUNCHER | FROM_AWS), (GCP, LAUNCHER | FROM_GCP)):
        yield from ((name, what, edits, line) for what, (edits, line) in faults.items())
    for name, spec, said in (
        (CLUSTER, "spec", "RayCluster: spec"),
        (JOB, "spec.rayClusterSpec", "RayJob: spec.rayClusterSpec"),
    ):
        for what, (edits, line) in MANIFEST.items():
            yield name, what, {f"{spec}.{path}": new for path, new in edits.items()}, f"{said}.{line}"
    yield from ((CLUSTER, what, edits, line) for what, (edits, line) in OF_CLUSTERS.items())
    yield from ((JOB, what, edits, line) for what, (edits, line) in OF_JOBS.items())


@pytest.mark.parametrize(
    ("name", "edits", "line"),
    [pytest.param(name, edits, line, id=f"{name}: {what}") for name, what, edits, line in cases()],
)
def test_each_fault_is_told_by_one_line(tmp_path, name, edits, line):
    told = edited(tmp_path, name, edits)
    assert len(told) == 1, told
    assert told[0].startswith(line)


def test_our_own_files_are_sound_and_their_gaps_counted(capfd, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert cluster_check.main([]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert [line.partition(": ")[0] for line in lines] == list(cluster_check.OURS)
    for name, line in zip(cluster_check.OURS, lines, strict=True):
        assert ": ok (" in line and "--storage " in line
        values = [value for document in yaml.safe_load_all((ROOT / name).read_text()) for value in leaves(document)]
        assert f"; {sum('CHANGE-ME' in str(value) for value in values)} CHANGE-ME to fill in" in line


def leaves(value):
    if isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from leaves(part)
    else:
        yield value


def test_all_problems_of_all_files_are_told_at_once_and_a_sound_file_still_has_its_line(tmp_path, capfd):
    config = yaml.safe_load((ROOT / AWS).read_text())
    del config["head_start_ray_commands"], config["cluster_name"]
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(config))
    (tmp_path / "b.yaml").write_text("")
    files = [str(tmp_path / "a.yaml"), str(tmp_path / "b.yaml"), str(ROOT / GCP)]
    assert cluster_check.main(files) == 2
    out, err = capfd.readouterr()
    assert out.count("\n") == 1 and "gcp.yaml: ok" in out
    place = "head_start_ray_commands[1] (Ray's default: the file has none)"
    ends = ["cluster_name: missing;", f"{place}: {NO_TOKEN}", f"{place}: {OPEN_DASHBOARD}", "b.yaml: is empty;"]
    assert len(err.splitlines()) == len(ends)
    for line, end in zip(err.splitlines(), ends, strict=True):
        assert line.startswith("error: ") and end in line


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"a: [1", "line 1: is no YAML"),
        (b"", "is empty; start from a copy of ray_cluster.yaml"),
        (b"# nothing\n---\n", "is empty; start from a copy of ray_cluster.yaml"),
        (b"just words", "document 1: is a str, not fields with values; correct it"),
        (b"\xff\xfe\x00", "is no text; give a YAML file"),
        (b"cluster_name: a\n---\ncluster_name: b", "document 2: `ray up` takes a file with one document"),
        (b"max_workers: {1: 2}", "document 1: '1' is a int where a field's name is; quote it"),
        (b"kind: RayCluster", "document 1: is no manifest; give apiVersion, kind and metadata"),
        (b"apiVersion: v1\nkind: Namespace\nmetadata: {name: a}", "document 1: no RayCluster and no RayJob in it"),
    ],
)
def test_what_is_no_description_is_told_in_one_line(tmp_path, content, told):
    path = tmp_path / "cluster.yaml"
    path.write_bytes(content)
    problems = problems_of(path)
    assert len(problems) == 1 and problems[0].startswith(told)


def test_a_file_that_is_not_there_and_flags_without_sense_end_the_command(tmp_path, capfd):
    assert cluster_check.main([str(tmp_path / "missing.yaml")]) == 2
    assert "missing.yaml: cannot be read (No such file or directory);" in capfd.readouterr().err
    for flag, value in (("--workers-per-trial", "0"), ("--cpus-per-worker", "-1"), ("--gpus-per-trial", "nan")):
        assert cluster_check.main([flag, value]) == 2
        assert capfd.readouterr().err.startswith(f"error: {flag}: ")


@pytest.mark.parametrize("name", cluster_check.OURS)
def test_trials_that_fit_and_trials_that_never_will(name):
    """Workers of one trial may be on several nodes, each of them on one."""
    path = ROOT / name
    for fits in (Trial(7, 7), Trial(10, 1, 10), Trial(1, 7, 0.25), Trial(10, 7, 0)):
        assert problems_of(path, fits) == []
    for large in (Trial(1, 9), Trial(1, 1, 2), Trial(2, 1, 4)):
        told = problems_of(path, large)
        assert len(told) == 2 and all(line.endswith(NO_FIT) for line in told)
    told = problems_of(path, Trial(11, 5, 11))
    assert len(told) == 1 and "all nodes together hold 10 of a trial's 11 workers" in told[0]


@pytest.mark.parametrize(
    ("name", "edits", "warning"),
    [
        (AWS, {"available_node_types.head.resources": {}}, "available_node_types.head.resources: trials may run on"),
        (GCP, {f"{NODE}.resources": {}}, f"{NODE}: states no resources; whether a trial fits cannot be told"),
        (
            CLUSTER,
            {"spec.headGroupSpec.rayStartParams": {}},
            "RayCluster: spec.headGroupSpec.rayStartParams: trials may",
        ),
        (
            JOB,
            {"spec.shutdownAfterJobFinishes": False, "spec.ttlSecondsAfterFinished": 0},
            "RayJob: spec.shutdownAfterJobFinishes: the nodes stay, and cost, when the study has ended",
        ),
    ],
)
def test_what_one_may_want_is_a_warning(tmp_path, capfd, name, edits, warning):
    assert edited(tmp_path, name, edits) == []
    assert cluster_check.main([str(tmp_path / "cluster.yaml")]) == 0
    warned, sound = capfd.readouterr().out.splitlines()
    assert f"cluster.yaml: warning: {warning}" in warned and "cluster.yaml: ok" in sound


def test_our_job_has_time_to_end_well_when_it_is_stopped():
    spec = yaml.safe_load((ROOT / JOB).read_text())["spec"]
    assert yaml.safe_load(spec["runtimeEnvYAML"])["env_vars"] == {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_S)}


@pytest.mark.parametrize(
    ("document", "line"),
    [
        ({"kind": "Service", "spec": {"type": "NodePort"}}, "Service: spec.type: NodePort opens it beyond Kubernetes"),
        ({"kind": "Secret", "stringData": {"auth_token": "0123"}}, "Secret: data: a secret in a file that is shared;"),
        (
            {"kind": "ServiceAccount", "automount": False},
            "ServiceAccount: fields: Additional properties are not allowed",
        ),
    ],
)
def test_manifests_beside_a_cluster_do_not_open_it(tmp_path, document, line):
    path = tmp_path / "cluster.yaml"
    more = {"apiVersion": "v1", "metadata": {"name": "more"}, **document}
    path.write_text((ROOT / CLUSTER).read_text() + "---\n" + yaml.safe_dump(more))
    told = problems_of(path)
    assert len(told) == 1 and told[0].startswith(line)


def test_help_is_there_at_once_and_the_script_itself_runs():
    code = """
import runpy, sys
sys.argv = ["search/cluster_check.py", "--help"]
try:
    runpy.run_path("search/cluster_check.py", run_name="__main__")
except SystemExit as ended:
    assert ended.code == 0, ended.code
heavy = {"torch", "ray", "optuna", "mlflow", "pydantic", "yaml"} & set(sys.modules)
assert not heavy, heavy
"""
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    command = [sys.executable, str(ROOT / "search" / "cluster_check.py"), AWS, "--gpus-per-trial", "2"]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 2 and ran.stdout == ""
    assert [line.rpartition(", ")[2] for line in ran.stderr.splitlines()] == [NO_FIT] * 2
