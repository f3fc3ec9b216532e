"""A server that speaks S3 in a process of its own, which can be stopped for a while, as a network or a store is."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from tests.ports import free_port
from tests.search.studies import wait_for
from tests.search.tracking.servers import stop

BUCKET = "studies"


class ObjectStore:
    """The server, with one bucket.

    Attributes:
        url: a folder in the bucket.
        environment: what reaches it.
    """

    def __init__(self, log: Path, secret: str = "s3cret", host: str = "127.0.0.1"):
        port = free_port()
        command = [sys.executable, "-m", "moto.server", "-H", host, "-p", str(port)]
        endpoint = f"http://{host}:{port}"
        self.environment = {"AWS_ENDPOINT_URL": endpoint, "AWS_DEFAULT_REGION": "us-east-1"}
        self.environment |= {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": secret}
        self.url = f"s3://{BUCKET}/ofakd"
        with log.open("w") as lines:
            self._process = subprocess.Popen(command, stdout=lines, stderr=lines, start_new_session=True)

        def answers() -> bool:
            with contextlib.suppress(OSError):
                urllib.request.urlopen(endpoint, timeout=5).close()
                return True
            return False

        wait_for(answers, "the object store's start")
        self.client = self._client(secret)
        self.client.create_bucket(Bucket=BUCKET)

    def _client(self, secret: str):
        import boto3

        keys = {"aws_access_key_id": "key", "aws_secret_access_key": secret}
        return boto3.client("s3", endpoint_url=self.environment["AWS_ENDPOINT_URL"], region_name="us-east-1", **keys)

    @contextlib.contextmanager
    def away(self) -> Iterator[None]:
        """Within this it takes connections and answers nothing."""
        os.kill(self._process.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self._process.pid, signal.SIGCONT)

    def names(self, under: str = "") -> list[str]:
        """The files below the folder, or one in it."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=f"ofakd/{under}")
        return [one["Key"].removeprefix("ofakd/") for page in pages for one in page.get("Contents", [])]

    def content(self, name: str) -> bytes:
        return self.client.get_object(Bucket=BUCKET, Key=f"ofakd/{name}")["Body"].read()

    def records(self, study: str) -> dict[str, dict]:
        """A study's records, by trial."""
        names = [name for name in self.names(f"{study}/trials/") if name.endswith("/record.json")]
        return {name.split("/")[-2]: json.loads(self.content(name)) for name in names}

    def deny(self, action: str) -> None:
        """Refuses an action on the bucket to all."""
        rule = {"Effect": "Deny", "Principal": "*", "Action": action}
        rule["Resource"] = [f"arn:aws:s3:::{BUCKET}", f"arn:aws:s3:::{BUCKET}/*"]
        policy = {"Version": "2012-10-17", "Statement": [rule]}
        self.client.put_bucket_policy(Bucket=BUCKET, Policy=json.dumps(policy))

    def close(self) -> None:
        stop(self._process)


@contextlib.contextmanager
def object_store(folder: Path, **options) -> Iterator[ObjectStore]:
    """A store that runs; its log is in the folder."""
    store = ObjectStore(folder / "s3.log", **options)
    try:
        yield store
    finally:
        store.close()
