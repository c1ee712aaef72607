"""What all tests share: an environment of their own, real servers, a small model and data set."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from servers import MlflowServer, free_port

_LONGEST = (
    *("test_jobs.py", "test_train.py", "test_sweep.py", "test_nodes.py", "test_faults.py"),
    "test_serving.py",
)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of two processes that share the files none is left with a long one at the end."""
    places = {name: place for place, name in enumerate(_LONGEST)}
    items.sort(key=lambda item: places.get(item.path.name, len(places)))


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Nothing of the user's is read or written; the lotlip home of the test, not yet made."""
    for name in list(os.environ):
        if name.startswith(("AWS_", "MLFLOW_", "LOTLIP_")) or name == "RAY_ADDRESS":
            monkeypatch.delenv(name)
    # What a command in this process sets is not to be there for later tests.
    monkeypatch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "")
    monkeypatch.delenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "no-aws-config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "no-aws-credentials"))
    monkeypatch.setenv("LOTLIP_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """The address of an S3 server that lives as long as the tests; nothing is set globally."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3_env(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Points every S3 client of this process at `s3_endpoint`."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "lotlip")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "lotlip")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    return s3_endpoint


@pytest.fixture
def dead_url() -> str:
    """An address at which nothing listens."""
    return f"http://127.0.0.1:{free_port()}"


@pytest.fixture(scope="session")
def start_mlflow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], MlflowServer]]:
    """Starts a server that a test may break; all are ended with the tests."""
    servers: list[MlflowServer] = []

    def start() -> MlflowServer:
        server = MlflowServer(tmp_path_factory.mktemp("mlflow"))
        servers.append(server)
        server.wait_until_it_answers()
        return server

    yield start
    for server in servers:
        server.end()


@pytest.fixture(scope="session")
def mlflow_server(start_mlflow: Callable[[], MlflowServer]) -> str:
    """The address of a server for all tests; give registered models names of their own."""
    return start_mlflow().url


@pytest.fixture(scope="session")
def new_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What MLflow makes of a file that isn't there: its tables take it seconds."""
    from mlflow import MlflowClient

    path = tmp_path_factory.mktemp("database") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def mlflow_file(own_environment: Path, new_database: Path) -> None:
    """The local file of the lotlip home is there already, and empty."""
    folder = own_environment / "mlflow"
    folder.mkdir(parents=True)
    shutil.copy(new_database, folder)


@pytest.fixture(scope="session")
def scenes_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 scenes in 2 shards; for reading only."""
    from lotlip_platform.datasets import make_scenes

    folder = tmp_path_factory.mktemp("scenes")
    make_scenes(str(folder), num_samples=60, shard_size=40, on_progress=lambda done, total: None)
    return folder


@pytest.fixture(scope="session")
def model_folder(scenes_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The export folder of an untrained tiny model that knows the scenes' words."""
    import torch

    from lotlip import export
    from lotlip.data.manifest import read_manifest
    from lotlip.data.shards import read_samples
    from lotlip.data.store import FolderStore
    from lotlip.model import PRESETS
    from lotlip.model.pretrained import build
    from lotlip.tokenizer import Tokenizer

    store = FolderStore(scenes_folder)
    samples = read_samples(store, read_manifest(store))
    tokenizer = Tokenizer.learn(
        (text for sample in samples for text in (sample.short, *sample.long.values())),
        vocab_size=1024,
        num_corner_tokens=2,
        context_length=96,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build(PRESETS["tiny"], tokenizer)
    folder = tmp_path_factory.mktemp("model") / "tiny"
    export.save(model, folder)
    return folder
