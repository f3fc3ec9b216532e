"""What the tests of MLflow's side share."""

import pytest

from tests.search.tracking.servers import mlflow_server


@pytest.fixture
def server(tmp_path):
    """The URI of a server that is not up yet, and what starts it."""
    with mlflow_server(tmp_path) as started:
        yield started
