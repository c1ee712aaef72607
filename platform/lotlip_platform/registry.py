"""Registered models: how they get into MLflow, and how they are found again."""

from __future__ import annotations

import base64
import io
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import mlflow
import pandas as pd
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.models.model import ModelInfo
from mlflow.types import ColSpec, DataType, Schema, TensorSpec
from mlflow.types.schema import Array
from PIL import Image

import lotlip
from lotlip.errors import CheckpointError, TrackingError
from lotlip.export import digest
from lotlip.model import LoTLIP
from lotlip_platform import tracking
from lotlip_platform.alias_history import HISTORY_TAG, AliasHistory, OvertakenError, new_history
from lotlip_platform.history_table import show_history
from lotlip_platform.probe import make_probe
from lotlip_platform.registered_version import downloaded, load_copy, load_from
from lotlip_platform.storage import open_store
from lotlip_platform.tracking_address import is_run_id

CANDIDATE = "candidate"
_REQUIREMENTS = (
    "torch",
    "tokenizers",
    "safetensors",
    "webdataset",
    "pillow",
    "ftfy",
    "boto3",
)
_ABOUT = (
    "Its aliases are moved by `lotlip models promote` and `rollback`. Who did so and why is told "
    "by `lotlip models history`; what the gate found, in the experiment `promotions of {name}`."
)


def register(server: tracking.Server, run_id: str, model: str, *, name: str, card: str = "") -> int:
    """Log an export folder, here or in S3, to its run and register it under `name`.

    `card` is what MLflow's page of the version shows, see `model_card`. Returns the number of the
    version. Raises: MLflow's own errors, CheckpointError, DataError.
    """
    serving = Path(__file__).parent / "serving_model.py"
    with tempfile.TemporaryDirectory() as temporary, tracking.resumed(server, run_id):
        folder, probe = Path(temporary) / "model", Path(temporary) / "probe"
        folder.mkdir()
        probe.mkdir()
        _copy(model, folder)
        loaded = load_copy(folder, model)
        for file, content in make_probe(loaded).items():
            (probe / file).write_bytes(content)
        logged = mlflow.pyfunc.log_model(
            name="model",
            python_model=str(serving),
            artifacts={"model": str(folder), "probe": str(probe)},
            code_paths=[str(Path(lotlip.__file__).parent)],
            signature=_signature(),
            input_example=_input_example(),
            pip_requirements=_requirements(),
        )
        tags = {
            "weights": digest(loaded),
            "num_corner_tokens": str(loaded.config.text.num_corner_tokens),
        }
        # A run that was evaluated has the picture.
        if card and server.client.list_artifacts(run_id, "figures"):
            card += f"\n\n{_contact_sheet(run_id)}"
        return _new_version(server, run_id, name, logged, tags, card[: tracking.MAX_TAG])


def version_of(client: MlflowClient, run_id: str, name: str) -> int:
    """The newest version of `name` that a run made; 0 if it made none."""
    found = client.search_model_versions(f"run_id = '{run_id}'")
    return max((int(version.version) for version in found if version.name == name), default=0)


def make_candidate(server: tracking.Server, name: str, number: int, run_id: str) -> None:
    """Set the alias `candidate`, unless a newer version has it."""
    history = AliasHistory(server, name)
    because = f"registered by run {run_id}"
    while True:
        history.finish_interrupted(CANDIDATE)
        known, before = history.changes(CANDIDATE), history.version(CANDIDATE)
        if before >= number:
            return
        with suppress(OvertakenError):
            history.move(
                CANDIDATE, number, action="register", because=because, known=known, before=before
            )
            show_history(server, history)
            return


@dataclass(frozen=True)
class RegisteredModel:
    """A registered model as a list shows it."""

    name: str
    num_versions: int
    """Number of its newest version; fewer may be left."""
    aliases: dict[str, int]


def registered_models(tracking_uri: str = "") -> list[RegisteredModel]:
    """All that the server has, by name. Raises: TrackingError."""
    server = tracking.connect(tracking_uri)
    found: list[RegisteredModel] = []
    token: str | None = ""
    with tracking.failures_named(server.uri):
        while token is not None:
            page = server.client.search_registered_models(page_token=token or None)
            for model in page:
                newest = max((int(v.version) for v in model.latest_versions or ()), default=0)
                aliases = {alias: int(number) for alias, number in model.aliases.items()}
                found.append(RegisteredModel(model.name, newest, aliases))
            token = page.token or None
    return sorted(found, key=lambda model: model.name)


def fetch(model: str, tracking_uri: str = "") -> LoTLIP:
    """A model by any of its names: an export folder here or in S3, `models:/NAME@ALIAS`,
    `models:/NAME/VERSION` or the id of an MLflow run.

    Raises: CheckpointError, DataError, TrackingError.
    """
    if model.startswith("s3://"):
        return _load_from_store(model)
    if model.startswith("models:/") or is_run_id(model):
        return _load_from_mlflow(model, tracking_uri)
    return lotlip.load(model)


def _load_from_store(uri: str) -> LoTLIP:
    with tempfile.TemporaryDirectory() as folder:
        _copy(uri, Path(folder))
        return load_copy(Path(folder), uri)


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
    with downloaded(server, source) as folder:
        return load_from(folder, model)


def _new_version(
    server: tracking.Server,
    run_id: str,
    name: str,
    logged: ModelInfo,
    tags: dict[str, str],
    card: str,
) -> int:
    """The number of a new version of `name`, which is created if it is new itself."""
    client = server.client
    _create(server, name)
    created = client.create_model_version(
        name,
        logged.model_uri,
        run_id=run_id,
        model_id=logged.model_id,
        tags=tags,
        description=card,
    )
    return int(created.version)


def _create(server: tracking.Server, name: str) -> None:
    """Create the registered model, with its history from the start, if there is none."""
    client = server.client
    if client.search_registered_models(f"name = '{name}'"):
        return
    history = new_history(server, name)
    try:
        client.create_registered_model(name, {HISTORY_TAG: history}, _ABOUT.format(name=name))
    except MlflowException as error:
        client.delete_run(history)
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _contact_sheet(run_id: str) -> str:
    """What the run's long captions find, as its page in MLflow shows it."""
    picture = f"get-artifact?path=figures%2Fretrieval.png&run_uuid={run_id}"
    return f"## What long captions find\n\n![long captions and the images they find]({picture})"


def _model_of_run(server: tracking.Server, run_id: str) -> str:
    with tracking.failures_named(server.uri):
        outputs = server.client.get_run(run_id).outputs
    if not outputs or not outputs.model_outputs:
        raise TrackingError(f"run {run_id} at {server.uri} has no model: did it finish?")
    return f"models:/{outputs.model_outputs[-1].model_id}"


def _signature() -> ModelSignature:
    text_or_image: list[ColSpec | TensorSpec] = [
        ColSpec(DataType.string, "image", required=False),
        ColSpec(DataType.binary, "image_bytes", required=False),
        ColSpec(DataType.string, "image_uri", required=False),
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
