from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from filelock import FileLock

# read when Ray is imported; `disabled` is for a Ray that only this machine's loopback reaches
os.environ |= {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", "RAY_DATA_DISABLE_PROGRESS_BARS": "1"}
# Networks of a few thousand weights gain nothing from a second thread, and threads of several processes wait for each
# other. Read when torch is imported, here and in the processes that tests start.
os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
# An MLflow server would start seven more processes for jobs that no test submits.
os.environ["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"


THIRD_PARTY_WARNINGS = (
    # Ray Data 2.60 sets its own deprecated fields whenever it copies a context
    r"ignore:.* deprecated:DeprecationWarning:ray\.data\.context",
    # MLflow 3.17 reads its runs with an option that SQLAlchemy 2.1 deprecates
    r"ignore:The ``noload`` loader strategy:DeprecationWarning",
    # MLflow 3.17 looks at hints of its own classes when mlflow.pyfunc is imported
    r"ignore:.*Any type hint is inferred as AnyType:UserWarning",
)


LONGEST_FIRST = (
    *("jobs/test_sweep.py", "jobs/test_downstream_jobs", "jobs/test_pretrain", "jobs/test_survival"),
    *("cluster/test_autoscaling", "cluster/test_trials", "jobs/test_", "cluster/test_world", "snps3_model/"),
)
"""The files that pytest-xdist hands out first. The others are short: with them the workers end at the same time."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Order the files by `LONGEST_FIRST`; the tests of a file keep their order."""

    def rank(item: pytest.Item) -> int:
        path = item.path.as_posix()
        return next((rank for rank, part in enumerate(LONGEST_FIRST) if part in path), len(LONGEST_FIRST))

    items.sort(key=rank)


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


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder that all processes of this test session share."""
    folder = tmp_path_factory.getbasetemp()
    return folder.parent if os.environ.get("PYTEST_XDIST_WORKER") else folder


def made_once(folder: Path, make: Callable[[Path], object]) -> Path:
    """Have `make` fill `folder`, unless another process of this session has done so; others wait meanwhile."""
    with FileLock(f"{folder}.lock"):
        mark = folder.with_name(f"{folder.name}.made")
        if not mark.exists():
            shutil.rmtree(folder, ignore_errors=True)  # of a process that failed midway
            folder.mkdir()
            make(folder)
            mark.touch()
    return folder


@pytest.fixture(scope="session")
def small_manifest(shared_folder: Path, local_ray: None) -> str:
    """Return the manifest of a corpus of a hundred generated clips, with questions. Nobody changes its files."""
    from jobs.benchmarks.kills import small_corpus

    folder = made_once(shared_folder / "small_corpus", lambda folder: small_corpus(str(folder)))
    return str(folder / "corpus" / "manifest" / "manifest.parquet")


@pytest.fixture(scope="session")
def toy_run(shared_folder: Path, small_manifest: str) -> str:
    """Return the folder of a finished run of two ranks on `small_manifest`: six steps, three checkpoints.

    `trained/` beside it tells which clips each rank was shown in each step.
    """
    from toy import toy_config

    from jobs.benchmarks.kills import recorded_rank
    from jobs.launch.driver import pretrain

    folder = made_once(
        shared_folder / "toy_run",
        lambda folder: pretrain(toy_config("small", small_manifest, folder / "runs"), on_rank=recorded_rank),
    )
    return str(folder / "runs" / "small")


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

    with mlflow_server(tmp_path, *free_ports(1)) as uri:
        yield uri


@contextlib.contextmanager
def mlflow_server(folder: Path, port: int) -> Iterator[str]:
    """Run a real MLflow server with its files in `folder`, and yield its address."""
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{folder}/server.db", "--artifacts-destination", str(folder / "a")]
    with (folder / "server.log").open("ab") as log:
        process = subprocess.Popen(command, env=os.environ, stdout=log, stderr=log, start_new_session=True)
    uri, deadline = f"http://127.0.0.1:{port}", time.monotonic() + 120
    try:
        while True:
            try:
                urllib.request.urlopen(f"{uri}/health", timeout=2).close()
                break
            except OSError:
                assert process.poll() is None, (folder / "server.log").read_text()
                assert time.monotonic() < deadline
                time.sleep(0.5)
        yield uri
    finally:
        os.killpg(process.pid, 15)
        process.wait(30)
