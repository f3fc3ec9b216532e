"""The Ray cluster of a study: started on this machine, or joined."""

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys
from pathlib import Path

from trainables.errors import InputError, one_line

SLOW_START, STARTS = "timed out during startup", 4
TOKEN = "RAY_AUTH_TOKEN, its file's path in RAY_AUTH_TOKEN_PATH, or in ~/.ray/auth_token"
NO_NODE = "No node info found"  # in Ray's words, on a machine that is no node of the cluster
RECONNECT_S, PROBE_S = "5", 90.0  # how long Ray tries again where no head answers, three times; and the whole of it
PROBE = """
import sys
from ray._private.services import canonicalize_bootstrap_address
from ray._raylet import GcsClient
address = canonicalize_bootstrap_address(sys.argv[1])
print(address, flush=True)
GcsClient(address).get_all_node_info(timeout=30)
"""


def start_ray(settings) -> None:
    """Starts a cluster on this machine, or joins the one at `address`; nothing where that was done before.

    Raises:
        InputError: nobody answers at the address.
    """
    if settings.address:
        bring_the_token()
    import ray

    if ray.is_initialized():
        return
    before = signal.getsignal(signal.SIGTERM)
    _start_or_join(settings)
    if callable(before):  # Ray puts its own in the place of the study's, which ends it cleanly
        signal.signal(signal.SIGTERM, before)


def _start_or_join(settings) -> None:
    import ray

    root = str(Path(__file__).resolve().parents[1])
    paths = [root, os.environ.get("PYTHONPATH"), os.getcwd()]  # the last for models of the user's own, last as here
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")  # MLflow and the ledger remember
    os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "inf")  # its restore is not used: the ledger resumes
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")  # the study's own handler knows more
    os.environ.setdefault("TUNE_FUNCTION_THREAD_TIMEOUT_S", "60")  # a proxy that waits for an epoch is no dead one
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.25")  # how soon a dead worker is seen
    quiet = {"log_to_driver": False, "logging_level": "ERROR"}
    if settings.address:
        environment = {"env_vars": {"PYTHONPATH": os.environ["PYTHONPATH"]}}
        address = _where_somebody_listens(settings.address)
        _check_head(address)
        try:
            ray.init(address=settings.address, runtime_env=environment, **quiet)
        except (ConnectionError, RuntimeError, ValueError) as error:
            if NO_NODE in str(error):
                raise InputError(
                    f"--address: this machine is no node of the cluster at {address}; run the study on one, or submit "
                    "it to the dashboard: --address http://HEAD:8265"
                ) from error
            raise InputError(f"--address: the cluster at {address} cannot be joined ({one_line(error)})") from error
        return
    # Nobody reclaims a machine of one's own, and the watcher would be one more process a lane.
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    wanted = settings.lanes * settings.workers_per_trial * settings.cpus_per_worker
    dashboard = {"include_dashboard": settings.dashboard_port is not None}
    if settings.dashboard_port:
        dashboard |= {"dashboard_host": "127.0.0.1", "dashboard_port": settings.dashboard_port}
    _start_here(
        num_cpus=max(os.cpu_count() or 1, wanted),
        object_store_memory=256 * 2**20,  # only control messages pass through it
        **dashboard,
        **quiet,
    )


def keep_secrets_from_ray() -> None:
    """Ray Tune gives each trial the user's AWS keys, which Ray writes into its log; ours only pass messages on."""
    from ray.tune.execution import class_cache

    named = {name for name in class_cache.ENV_VARS_TO_PROPAGATE if name.startswith("AWS_")}
    class_cache.ENV_VARS_TO_PROPAGATE.difference_update(named)


def _start_here(**options) -> None:
    """A cluster on this machine; Ray gives its own processes 30 s, which a busy machine may not have at first."""
    import ray

    _keep_to_the_user(_own_token())
    for attempt in range(1, STARTS + 1):
        try:
            ray.init(address="local", **options)
            return
        except Exception as error:  # Ray has no type of its own for it
            if SLOW_START not in str(error) or attempt == STARTS:
                raise
            ray.shutdown()


def bring_the_token() -> None:
    """Has Ray send the user's token; to be called before Ray is imported.

    Ray brings it to `auto` only, not to a named address, unless it is told so before its import.
    """
    token = os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH")
    if _own_token().exists():
        _keep_to_the_user(_own_token())
    if token or _own_token().exists():
        os.environ.setdefault("RAY_AUTH_MODE", "token")


def _own_token() -> Path:
    return Path.home() / ".ray" / "auth_token"


def _keep_to_the_user(path: Path) -> None:
    """The token, made where there is none: whoever reads it may run anything as this user, and Ray lets all read it."""
    with contextlib.suppress(OSError):  # the home cannot be written: Ray says so where it matters
        path.parent.mkdir(exist_ok=True)
        with contextlib.suppress(FileExistsError):
            made = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
            os.write(made, secrets.token_hex(32).encode())
            os.close(made)
        if path.stat().st_mode & 0o077:
            path.chmod(0o600)


def _where_somebody_listens(address: str) -> str:
    """The address as HOST:PORT; Ray itself would wait for half a minute, or for ever, where nobody does."""
    if address == "auto":
        from ray._private.services import canonicalize_bootstrap_address

        found = canonicalize_bootstrap_address(address)
        if found is None:
            raise InputError("--address: 'auto' finds no Ray cluster on this machine; give HOST:PORT of one's head")
        address = found
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdigit() or "/" in host:
        raise InputError(f"--address: '{address}' is no HOST:PORT of a running Ray cluster's head, nor 'auto'")
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except OSError as error:
        raise InputError(
            f"--address: nobody answers at {address} ({error.strerror or error}); is `ray start` running there?"
        ) from error
    return address


def _check_head(address: str) -> None:
    """Asks who answers at an address, in another process: Ray ends the one in which no head does, without a word."""
    said, asked = "", address
    environment = os.environ | {"RAY_gcs_rpc_server_reconnect_timeout_s": RECONNECT_S}
    try:
        ran = subprocess.run(
            [sys.executable, "-c", PROBE, address], capture_output=True, text=True, env=environment, timeout=PROBE_S
        )
        if ran.returncode == 0:
            return
        said, asked = ran.stderr, ran.stdout.strip() or address
    except subprocess.TimeoutExpired:  # it takes what it is sent, and says nothing
        pass
    if "AuthenticationError" in said or "authentication token" in said.lower():
        has_one = os.environ.get("RAY_AUTH_MODE") == "token"
        problem = f"refuses the token; correct it in {TOKEN}" if has_one else f"asks for a token; put it in {TOKEN}"
        raise InputError(f"--address: the cluster at {address} {problem}")
    also = "" if asked == address else f" (Ray asks at {asked})"
    raise InputError(
        f"--address: what answers at {address}{also} is no Ray cluster's head; give HOST:PORT of one, as `ray start` "
        "printed it, or its dashboard: http://HOST:8265"
    )
