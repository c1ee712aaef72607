"""Registered models: how they get into MLflow, and how they are found again."""

from __future__ import annotations

import base64
import io
import re
import tempfile
from importlib.metadata import version
from pathlib import Path

import mlflow
import pandas as pd
from mlflow import MlflowClient
from mlflow.artifacts import download_artifacts
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.models.model import ModelInfo
from mlflow.types import ColSpec, DataType, Schema, TensorSpec
from mlflow.types.schema import Array
from PIL import Image

import lotlip
from lotlip.errors import CheckpointError, TrackingError
from lotlip.model import LoTLIP
from lotlip_platform import tracking
from lotlip_platform.storage import open_store
from lotlip_platform.tracking_address import one_line

CANDIDATE = "candidate"
_REQUIREMENTS = (
    "torch",
    "tokenizers",
    "safetensors",
    "webdataset",
    "pillow",
    "ftfy",
)
_RUN_ID = re.compile(r"[0-9a-f]{32}")


def register(server: tracking.Server, run_id: str, model: str, *, name: str) -> int:
    """Log an export folder, here or in S3, to its run and register it under `name`.

    Returns the number of the version. Raises: MLflow's own errors, DataError.
    """
    serving = Path(__file__).parent / "serving_model.py"
    with tempfile.TemporaryDirectory() as temporary, tracking.resumed(server, run_id):
        folder = Path(temporary) / "model"
        folder.mkdir()
        _copy(model, folder)
        logged = mlflow.pyfunc.log_model(
            name="model",
            python_model=str(serving),
            artifacts={"model": str(folder)},
            code_paths=[str(Path(lotlip.__file__).parent)],
            signature=_signature(),
            input_example=_input_example(),
            pip_requirements=_requirements(),
        )
        return _new_version(server.client, run_id, name, logged)


def version_of(client: MlflowClient, run_id: str, name: str) -> int:
    """The newest version of `name` that a run made; 0 if it made none."""
    found = client.search_model_versions(f"run_id = '{run_id}'")
    return max((int(version.version) for version in found if version.name == name), default=0)


def make_candidate(client: MlflowClient, name: str, number: int) -> None:
    """Set the alias `candidate`, unless a newer version has it."""
    has = client.get_registered_model(name).aliases.get(CANDIDATE, 0)
    if int(has) < number:
        client.set_registered_model_alias(name, CANDIDATE, str(number))


def fetch(model: str, tracking_uri: str = "") -> LoTLIP:
    """A model by any of its names: an export folder here or in S3, `models:/NAME@ALIAS`,
    `models:/NAME/VERSION` or the id of an MLflow run.

    Raises: CheckpointError, DataError, TrackingError.
    """
    if model.startswith("s3://"):
        return _load_from_store(model)
    if model.startswith("models:/") or _RUN_ID.fullmatch(model):
        return _load_from_mlflow(model, tracking_uri)
    return lotlip.load(model)


def _load_from_store(uri: str) -> LoTLIP:
    with tempfile.TemporaryDirectory() as folder:
        _copy(uri, Path(folder))
        return _load_copy(Path(folder), uri)


def _copy(uri: str, folder: Path) -> None:
    """Copy an export folder. Raises: CheckpointError, DataError."""
    store = open_store(uri)
    names = store.list()
    if "model.safetensors" not in names:
        raise CheckpointError(f"{uri} is not an export folder: it has no model.safetensors")
    for name in names:
        if "/" not in name:
            (folder / name).write_bytes(store.read(name))


def _load_from_mlflow(model: str, tracking_uri: str) -> LoTLIP:
    server = tracking.connect(tracking_uri)
    source = model if model.startswith("models:/") else _model_of_run(server, model)
    with tempfile.TemporaryDirectory() as temporary:
        try:
            folder = download_artifacts(source, dst_path=temporary)
        except tracking.FAILURES as error:
            raise TrackingError(
                f"{server.uri} has no model {model}: {one_line(error, 200)}"
            ) from error
        exported = Path(folder) / "artifacts" / "model"
        if not exported.is_dir():
            raise CheckpointError(f"{model} is not a model of lotlip: it has no export folder")
        return _load_copy(exported, model)


def _load_copy(folder: Path, address: str) -> LoTLIP:
    """Errors name the address that the user gave, not our copy of what lies there."""
    try:
        return lotlip.load(folder)
    except CheckpointError as error:
        raise CheckpointError(str(error).replace(str(folder), address)) from error


def _new_version(client: MlflowClient, run_id: str, name: str, logged: ModelInfo) -> int:
    """The number of a new version of `name`, which is created if it is new itself."""
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    created = client.create_model_version(
        name, logged.model_uri, run_id=run_id, model_id=logged.model_id
    )
    return int(created.version)


def _model_of_run(server: tracking.Server, run_id: str) -> str:
    with tracking.failures_named(server.uri):
        outputs = server.client.get_run(run_id).outputs
    if not outputs or not outputs.model_outputs:
        raise TrackingError(f"run {run_id} at {server.uri} has no model: did it finish?")
    return f"models:/{outputs.model_outputs[-1].model_id}"


def _signature() -> ModelSignature:
    text_or_image: list[ColSpec | TensorSpec] = [
        ColSpec(DataType.string, "image", required=False),
        ColSpec(DataType.string, "text", required=False),
    ]
    embeddings: list[ColSpec | TensorSpec] = [
        ColSpec(Array(DataType.double), "image_embedding", required=False),
        ColSpec(Array(DataType.double), "text_embedding", required=False),
    ]
    return ModelSignature(inputs=Schema(text_or_image), outputs=Schema(embeddings))


def _input_example() -> pd.DataFrame:
    """One row with both: a small grey picture and a text."""
    png = io.BytesIO()
    Image.new("RGB", (8, 8), "grey").save(png, "PNG")
    return pd.DataFrame(
        {"image": [base64.b64encode(png.getvalue()).decode()], "text": ["a grey square"]}
    )


def _requirements() -> list[str]:
    """What the model needs where it is served; a local build of torch counts as its release."""
    pins = [f"{package}=={version(package).partition('+')[0]}" for package in _REQUIREMENTS]
    return [f"mlflow=={version('mlflow')}", *pins]
