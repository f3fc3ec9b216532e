"""The real tracking servers; those that take long to start are there once for all tests that ask for them."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.search.tracking import servers

ADMIN, USER = "chief", "anna"
BUCKET = "artifacts"


@dataclass
class Stores:
    """A tracking server over PostgreSQL, with log-in and artifacts on disk; and one over S3, behind a token.

    Attributes:
        database: the servers' PostgreSQL.
        uri: of the server that asks for a user and a password.
        front: of the front that asks for a token; its server keeps artifacts on S3.
        refused: what the front refused.
        log: the servers' folder.
        s3: the environment that reaches the bucket.
    """

    database: servers.Cluster
    uri: str
    front: str
    refused: list[str]
    folder: Path
    s3: dict[str, str]
    password = "Anna's pass: w%40rd/#?&@"  # of the log-in
    database_password = "p@ss/w:rd%25 #?x"
    token = "t0ken-of-the-front"
    s3_secret = "secret/key+of=s3"

    def log_in(self) -> dict[str, str]:
        return {"MLFLOW_TRACKING_USERNAME": USER, "MLFLOW_TRACKING_PASSWORD": self.password}


@pytest.fixture
def server(tmp_path):
    """The address of a server that is not up yet, and what starts it."""
    with servers.over_sqlite(tmp_path) as started:
        yield started


@pytest.fixture(scope="session")
def stores(tmp_path_factory):
    folder, admin_password = tmp_path_factory.mktemp("stores"), "the chief's own 0"
    with (
        servers.postgres("superuser's") as database,
        servers.s3(BUCKET, "key", Stores.s3_secret) as s3,
    ):
        database.make("mlflow", Stores.database_password, "tracking", "auth", "fronted")
        config = folder / "auth.ini"
        auth_uri = database.uri("mlflow", "auth").replace("%", "%%")
        lines = ["default_permission = READ", f"database_uri = {auth_uri}", f"admin_username = {ADMIN}"]
        # without a cache each request hashes the password anew, for most of a second
        config.write_text("\n".join(["[mlflow]", *lines, "auth_cache_ttl_seconds = 60", ""]))
        config.chmod(0o600)
        to_database = {"PGPASSWORD": Stores.database_password}
        own = {
            "MLFLOW_AUTH_CONFIG_PATH": str(config),
            "MLFLOW_AUTH_ADMIN_PASSWORD": admin_password,
            "MLFLOW_FLASK_SERVER_SECRET_KEY": "what signs the forms",
        }
        disk = str(folder / "artifacts")
        store, fronted = database.uri("mlflow", "tracking"), database.uri("mlflow", "fronted")
        with (
            servers.mlflow_server(
                store, disk, folder / "auth.log", "--app-name", "basic-auth", **to_database, **own
            ) as uri,
            servers.mlflow_server(fronted, f"s3://{BUCKET}", folder / "s3.log", **to_database, **s3) as behind,
            servers.token_front(behind, Stores.token) as (front, refused),
        ):
            servers.make_login(uri, (ADMIN, admin_password), (USER, Stores.password))
            yield Stores(database, uri, front, refused, folder, s3)
