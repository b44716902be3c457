from __future__ import annotations

import os
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

# read when Ray is imported; `disabled` is for a Ray that only this machine's loopback reaches
os.environ |= {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", "RAY_DATA_DISABLE_PROGRESS_BARS": "1"}


THIRD_PARTY_WARNINGS = (
    # Ray Data 2.60 sets its own deprecated fields whenever it copies a context
    r"ignore:.* deprecated:DeprecationWarning:ray\.data\.context",
    # MLflow 3.17 reads its runs with an option that SQLAlchemy 2.1 deprecates
    r"ignore:The ``noload`` loader strategy:DeprecationWarning",
    # MLflow 3.17 looks at hints of its own classes when mlflow.pyfunc is imported
    r"ignore:.*Any type hint is inferred as AnyType:UserWarning",
)


def pytest_configure(config: pytest.Config) -> None:
    for warning in THIRD_PARTY_WARNINGS:
        config.addinivalue_line("filterwarnings", warning)


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    """A Ray on this machine's loopback with two CPUs, shared by all tests marked `ray`."""
    import ray

    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=100 * 2**20,
        _node_ip_address="127.0.0.1",
    )
    yield
    ray.shutdown()


@pytest.fixture
def bucket() -> Iterator[str]:
    """The URL of a new bucket of the S3 server that AWS_ENDPOINT_URL names; it is removed at the end."""
    if not os.environ.get("AWS_ENDPOINT_URL"):
        pytest.skip(
            "AWS_ENDPOINT_URL is unset: it names an S3 server, with AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )
    from pipeline import storage

    with storage.temporary_bucket(f"s3://snps3-test-{uuid.uuid4().hex[:12]}") as url:
        yield url


@pytest.fixture
def real_files() -> Path:
    """The folder with the real clips and annotations of third parties."""
    folder = os.environ.get("SNPS3_TEST_DATA")
    if not folder:
        pytest.skip("SNPS3_TEST_DATA is unset: it names the folder with videos/ and annotations/ of third parties")
    return Path(folder)


@pytest.fixture
def tracking_server(tmp_path: Path) -> Iterator[str]:
    """The address of a real MLflow server."""
    from cluster.head import free_ports

    (port,) = free_ports(1)
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += [
        "--backend-store-uri",
        f"sqlite:///{tmp_path}/server.db",
        "--artifacts-destination",
        str(tmp_path / "a"),
    ]
    with (tmp_path / "server.log").open("wb") as log:
        process = subprocess.Popen(command, env=os.environ, stdout=log, stderr=log, start_new_session=True)
    uri, deadline = f"http://127.0.0.1:{port}", time.monotonic() + 120
    try:
        while True:
            try:
                urllib.request.urlopen(f"{uri}/health", timeout=2).close()
                break
            except OSError:
                assert process.poll() is None, (tmp_path / "server.log").read_text()
                assert time.monotonic() < deadline
                time.sleep(0.5)
        yield uri
    finally:
        os.killpg(process.pid, 15)
        process.wait(30)
