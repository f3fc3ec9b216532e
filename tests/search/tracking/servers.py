"""Real servers on free ports: PostgreSQL, MLflow's, one that speaks S3, and a front that wants a token.

PostgreSQL is Debian's package; where it is missing root installs it, anybody else's tests are skipped.
"""

import base64
import contextlib
import http.server
import json
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from tests.ports import free_port
from tests.search.studies import wait_for

OTHERS = ("postgres", "nobody")  # whom PostgreSQL may run as where we are root, which it refuses


def postgres_programs() -> Path:
    """The folder of the newest PostgreSQL; installs one, or skips the test with the reason."""
    if found := _newest():
        return found
    if os.getuid() or not shutil.which("apt-get"):
        pytest.skip("PostgreSQL is not installed; apt-get install postgresql")
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    for command in (["update"], ["install", "--yes", "--no-install-recommends", "postgresql"]):
        done = subprocess.run(["apt-get", "-qq", *command], env=environment, capture_output=True, text=True)
    return _newest() or pytest.skip(f"PostgreSQL cannot be installed: {done.stderr.strip()[-200:]}")


def _newest() -> Path | None:
    found = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/initdb")]
    return max(found, key=lambda path: int(path.parent.name), default=None)


class Cluster:
    """A PostgreSQL of the tests' own; its superuser is `admin`.

    Attributes:
        folder: of its data and socket.
    """

    def __init__(self, folder: Path, password: str):
        self._programs, self.folder, self.port, self.password = postgres_programs(), folder, free_port(), password
        self._user = None
        if os.getuid() == 0:
            names = {entry.pw_name for entry in pwd.getpwall()}
            self._user = pwd.getpwnam(next(name for name in OTHERS if name in names))
            os.chown(folder, self._user.pw_uid, self._user.pw_gid)
        secret = folder / "password"
        secret.write_text(password)
        if self._user:
            os.chown(secret, self._user.pw_uid, self._user.pw_gid)
        options = ["--username", "admin", "--auth", "scram-sha-256", "--pwfile", str(secret), "--encoding", "UTF8"]
        self.run("initdb", "--pgdata", str(folder / "data"), *options, "--locale", "C", "--no-sync")
        secret.unlink()

    def start(self) -> None:
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -k {self.folder} -F"
        log = ["--log", str(self.folder / "log"), "--options", options, "--timeout", "300"]
        self.run("pg_ctl", "--pgdata", str(self.folder / "data"), *log, "--wait", "start")

    def stop(self) -> None:
        self.run("pg_ctl", "--pgdata", str(self.folder / "data"), "--mode", "immediate", "--wait", "stop")

    def make(self, user: str, password: str, *databases: str) -> None:
        """A user as `createuser` makes it, and databases of its own."""
        place = ["--host", "127.0.0.1", "--port", str(self.port), "--username", "admin", "--no-password"]
        quoted = password.replace("'", "''")
        self.run(
            "psql", *place, "--quiet", "--command", f"CREATE ROLE \"{user}\" LOGIN PASSWORD '{quoted}'", "postgres"
        )
        for database in databases:
            self.run("createdb", *place, "--owner", user, database)

    def uri(self, user: str, database: str, password: str | None = None) -> str:
        secret = "" if password is None else f":{quote(password, safe='')}"
        return f"postgresql://{user}{secret}@127.0.0.1:{self.port}/{database}"

    def run(self, program: str, *arguments: str) -> str:
        """One of PostgreSQL's programs, as a user that it accepts; what it printed."""
        user = {"user": self._user.pw_uid, "group": self._user.pw_gid, "extra_groups": []} if self._user else {}
        environment = {"PATH": os.environ["PATH"], "PGPASSWORD": self.password, "LC_ALL": "C"}
        with tempfile.TemporaryFile("w+") as told:  # no pipe: the server that pg_ctl starts would hold it open
            command = [str(self._programs / program), *arguments]
            code = subprocess.run(command, cwd="/", env=environment, stdout=told, stderr=told, **user).returncode
            told.seek(0)
            text = told.read()
        assert code == 0, f"{program}: {text}"
        return text


@contextlib.contextmanager
def postgres(password: str) -> Iterator[Cluster]:
    """A cluster that runs; its folder is one that other users can reach, which pytest's are not."""
    folder = Path(tempfile.mkdtemp(prefix="postgres-"))
    try:
        cluster = Cluster(folder, password)
        cluster.start()
        try:
            yield cluster
        finally:
            cluster.stop()
    finally:
        shutil.rmtree(folder)


@contextlib.contextmanager
def startable_server(
    store: str, artifacts: str, log: Path, *options: str, **environment: str
) -> Iterator[tuple[str, Callable[[], subprocess.Popen]]]:
    """The address of an MLflow server over a store, and what starts it, again too; what was started ends with it."""
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", store, "--artifacts-destination", artifacts, *options]
    # Its jobs are seven processes, for evaluations that no study asks for.
    plain = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    whole = os.environ | plain | environment
    started: list[subprocess.Popen] = []

    def answers() -> bool:
        assert started[-1].poll() is None, f"the server ended: {log.read_text()[-3000:]}"
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
        except OSError:
            return False
        return True

    def start() -> subprocess.Popen:
        with log.open("a") as lines:
            at = {"cwd": log.parent, "env": whole, "start_new_session": True}
            started.append(subprocess.Popen(command, stdout=lines, stderr=lines, **at))
        wait_for(answers, "the server's start")
        return started[-1]

    try:
        yield f"http://127.0.0.1:{port}", start
    finally:
        for process in started:
            if process.poll() is None:
                stop(process)


def stop(process: subprocess.Popen) -> None:
    """Ends a server and the worker processes in its own group, which it would leave behind."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@contextlib.contextmanager
def mlflow_server(store: str, artifacts: str, log: Path, *options: str, **environment: str) -> Iterator[str]:
    """MLflow's server over a store, up; gives its address."""
    with startable_server(store, artifacts, log, *options, **environment) as (uri, start):
        start()
        yield uri


def over_sqlite(folder: Path):
    """A `startable_server` that keeps all in a folder."""
    return startable_server(f"sqlite:///{folder}/server.db", str(folder / "s"), folder / "server.log")


def make_login(uri: str, admin: tuple[str, str], user: tuple[str, str]) -> None:
    """A user of a server with log-in, made by its admin as the README has it."""
    body = json.dumps({"username": user[0], "password": user[1]}).encode()
    headers = {"Content-Type": "application/json"}
    headers["Authorization"] = "Basic " + base64.b64encode(":".join(admin).encode()).decode()
    urllib.request.urlopen(urllib.request.Request(f"{uri}/api/2.0/mlflow/users/create", body, headers)).close()


class Front(http.server.BaseHTTPRequestHandler):
    """Passes on to a server what bears the token, as a company's front does; the rest gets 401."""

    token, behind = "", ""
    refused: list[str]

    def _pass_on(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Authorization") != f"Bearer {self.token}":
            self.refused.append(self.path)
            return self._answer(401, b"who are you?", {})
        own = ("host", "authorization", "connection", "content-length", "accept-encoding")
        headers = {name: value for name, value in self.headers.items() if name.lower() not in own}
        asked = urllib.request.Request(self.behind + self.path, body or None, headers, method=self.command)
        try:
            with urllib.request.urlopen(asked, timeout=60) as answer:
                self._answer(answer.status, answer.read(), answer.headers)
        except urllib.error.HTTPError as answer:
            self._answer(answer.code, answer.read(), answer.headers)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _pass_on

    def _answer(self, status, body, headers):
        self.send_response(status)
        self.send_header("Content-Type", headers.get("Content-Type", "text/plain"))
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def token_front(behind: str, token: str) -> Iterator[tuple[str, list[str]]]:
    """A front over a server; its address, and a list that it fills with the paths of what it refused."""
    refused: list[str] = []
    handler = type("TokenFront", (Front,), {"token": token, "behind": behind, "refused": refused})
    front = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=front.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{front.server_address[1]}", refused
    front.shutdown()
    thread.join()
    front.server_close()


@contextlib.contextmanager
def s3(bucket: str, key: str, secret: str) -> Iterator[dict[str, str]]:
    """A server that speaks S3, as AWS's do, with one bucket; the environment that reaches it."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    environment = {"MLFLOW_S3_ENDPOINT_URL": f"http://{host}:{port}", "AWS_DEFAULT_REGION": "us-east-1"}
    environment |= {"AWS_ACCESS_KEY_ID": key, "AWS_SECRET_ACCESS_KEY": secret}
    client = boto3.client(
        "s3",
        endpoint_url=environment["MLFLOW_S3_ENDPOINT_URL"],
        region_name="us-east-1",
        aws_access_key_id=key,
        aws_secret_access_key=secret,
    )
    client.create_bucket(Bucket=bucket)
    yield environment
    server.stop()
