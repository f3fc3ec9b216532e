"""What studies on an object store share."""

import pytest
import s3fs

from tests.search.object_store import object_store


@pytest.fixture
def store(tmp_path, monkeypatch):
    """An object store that the environment reaches; copies of what it has lie in the test's folder."""
    folder = tmp_path / "s3"
    folder.mkdir()
    with object_store(folder) as found:
        for name, value in found.environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        s3fs.S3FileSystem.clear_instance_cache()  # one of another test's store
        yield found
