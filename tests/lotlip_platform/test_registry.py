from __future__ import annotations

import base64
import io
import json
import math
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import pytest
import torch
from mlflow.exceptions import MlflowException
from PIL import Image

import lotlip
from lotlip.errors import CheckpointError, ConfigError, DataError, TrackingError
from lotlip.evaluate.embed import embed_images, embed_texts
from lotlip.export import digest
from lotlip.model import LoTLIP
from lotlip_platform.registry import fetch, make_candidate, register, version_of
from lotlip_platform.storage import ensure_bucket, open_store
from lotlip_platform.tracking import Server, connect

NAME = "registry-test"
TEXT = "A red castle. Two birds are above it."


@dataclass(frozen=True)
class Registered:
    uri: str
    run_id: str
    server: Server


def export_files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def registered(mlflow_server: str, model_folder: Path) -> Registered:
    """The tiny model, registered twice, so that there are two versions of it."""
    server = connect(mlflow_server)
    for version in (1, 2):
        run_id = server.client.create_run("0").info.run_id
        number = register(server, run_id, str(model_folder), name=NAME)
        make_candidate(server, NAME, number, run_id)
        server.client.set_terminated(run_id)
        assert number == version
        assert version_of(server.client, run_id, NAME) == number
        assert version_of(server.client, run_id, "another") == 0
    make_candidate(server, NAME, 1, run_id)  # told late: a newer one stays
    return Registered(f"models:/{NAME}/{number}", run_id, server)


@pytest.fixture(autouse=True)
def same_server(registered: Registered) -> None:
    connect(registered.server.uri)


@pytest.fixture(scope="module")
def model(model_folder: Path) -> LoTLIP:
    return lotlip.load(model_folder)


@pytest.fixture(scope="module")
def served(registered: Registered) -> Any:
    return mlflow.pyfunc.load_model(f"models:/{NAME}@candidate")


def picture(colour: str = "red", size: int = 40) -> bytes:
    png = io.BytesIO()
    Image.new("RGB", (size, size), colour).save(png, "PNG")
    return png.getvalue()


def encoded(image: bytes) -> str:
    return base64.b64encode(image).decode()


def test_the_newest_version_is_the_candidate_and_knows_its_run(registered: Registered) -> None:
    version = registered.server.client.get_model_version_by_alias(NAME, "candidate")
    assert (str(version.version), version.run_id) == ("2", registered.run_id)
    run = registered.server.client.get_run(registered.run_id)
    assert run.info.status == "FINISHED"
    assert len(run.outputs.model_outputs) == 1


def test_what_is_stored_holds_no_pickle(registered: Registered, tmp_path: Path) -> None:
    folder = mlflow.artifacts.download_artifacts(registered.uri, dst_path=str(tmp_path))
    files = [path for path in Path(folder).rglob("*") if path.is_file()]
    assert {"model.safetensors", "serving_model.py", "MLmodel"} <= {path.name for path in files}
    suffixes = {".pkl", ".pickle", ".pt", ".pth", ".bin", ".ckpt", ".pyc"}
    assert [path for path in files if path.suffix in suffixes] == []


def test_the_signature_names_image_and_text_as_optional(served: Any) -> None:
    columns = {column.name: column.required for column in served.metadata.signature.inputs.inputs}
    assert columns == dict.fromkeys(("image", "image_bytes", "image_uri", "text"), False)
    outputs = {column.name: column.required for column in served.metadata.signature.outputs.inputs}
    assert outputs == {"image_embedding": False, "text_embedding": False}
    example = served.input_example
    assert set(example.columns) == {"image", "text"}
    (answer,) = served.predict(example)
    assert None not in answer.values()


def test_requirements_are_exact_and_of_released_versions(
    registered: Registered, tmp_path: Path
) -> None:
    folder = mlflow.artifacts.download_artifacts(registered.uri, dst_path=str(tmp_path))
    lines = (Path(folder) / "requirements.txt").read_text().split()
    assert any(line.startswith("torch==") for line in lines)
    assert all("==" in line and "+" not in line for line in lines)


def test_served_embeddings_equal_the_models_own(served: Any, model: LoTLIP) -> None:
    images, texts = [picture("red"), picture("blue", 64)], [TEXT, "A dog."]
    rows = pd.DataFrame({"image": [encoded(image) for image in images], "text": texts})
    answers = served.predict(rows)
    for name, expected in (
        ("image_embedding", embed_images(model, images)),
        ("text_embedding", embed_texts(model, texts)),
    ):
        found = torch.tensor([answer[name] for answer in answers])
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(found.norm(dim=1), torch.ones(2))


def test_a_row_may_have_text_or_image_alone(served: Any, model: LoTLIP) -> None:
    (text,) = served.predict(pd.DataFrame({"text": [TEXT]}))
    assert text["image_embedding"] is None
    torch.testing.assert_close(torch.tensor(text["text_embedding"]), embed_texts(model, [TEXT])[0])
    (image,) = served.predict(pd.DataFrame({"image": [encoded(picture())]}))
    assert image["text_embedding"] is None
    expected = embed_images(model, [picture()])[0]
    torch.testing.assert_close(torch.tensor(image["image_embedding"]), expected)


@pytest.mark.parametrize("nothing", [None, math.nan])
def test_missing_values_stay_missing_and_the_others_keep_their_rows(
    served: Any, model: LoTLIP, nothing: float | None
) -> None:
    image = encoded(picture())
    rows = pd.DataFrame({"image": [nothing, image, nothing], "text": [TEXT, nothing, nothing]})
    first, second, third = served.predict(rows)
    assert first["image_embedding"] is second["text_embedding"] is None
    assert set(third.values()) == {None}
    expected = embed_texts(model, [TEXT])[0]
    torch.testing.assert_close(torch.tensor(first["text_embedding"]), expected)
    assert second["image_embedding"] is not None


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ("no base64 !", "row 1: image is not base64"),
        ("kein Bäse64", "row 1: image is not base64"),
        ("abc", "row 1: image is not base64"),
        ("", "row 1: .*does not decode"),
        (encoded(b"not an image"), "does not decode"),
        (encoded(picture()[:60]), "does not decode"),
    ],
)
def test_a_bad_image_is_the_clients_error(served: Any, image: str, message: str) -> None:
    with pytest.raises(MlflowException, match=message) as error:
        served.predict(pd.DataFrame({"image": [encoded(picture()), image]}))
    assert error.value.error_code == "INVALID_PARAMETER_VALUE"


def test_an_image_may_be_bytes_or_lie_below_a_root(
    served: Any, model: LoTLIP, tmp_path: Path, s3_env: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ensure_bucket("s3://pictures")
    open_store("s3://pictures/set").write("a b.png", picture())
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(picture())
    (tmp_path / "out.png").write_bytes(picture())
    (tmp_path / "in" / "link.png").symlink_to(tmp_path / "out.png")
    expected = embed_images(model, [picture()])[0]
    path = str(tmp_path / "in" / "a.png")

    def embedded(column: str, value: Any) -> torch.Tensor:
        (answer,) = served.predict(pd.DataFrame({column: [value]}))
        return torch.tensor(answer["image_embedding"])

    torch.testing.assert_close(embedded("image_bytes", picture()), expected)
    with pytest.raises(MlflowException, match="is not below one of LOTLIP_IMAGE_ROOTS"):
        embedded("image_uri", path)
    monkeypatch.setenv("LOTLIP_IMAGE_ROOTS", f"{tmp_path / 'in'},s3://pictures/set")
    for uri in (path, f"file://{path}", "s3://pictures/set/a b.png"):
        torch.testing.assert_close(embedded("image_uri", uri), expected)
    for uri in (
        str(tmp_path / "out.png"),
        str(tmp_path / "in" / ".." / "out.png"),
        str(tmp_path / "in" / "link.png"),
        f"{tmp_path / 'in'}side.png",
        "s3://pictures/settle.png",
        "s3://other/a.png",
        "https://169.254.169.254/latest/meta-data",
    ):
        with pytest.raises(MlflowException, match="is not below one of"):
            embedded("image_uri", uri)
    for uri in ("s3://pictures/set/../secret.png", "https://h/a/%2e%2e/secret.png"):
        with pytest.raises(MlflowException, match="leads upwards"):
            embedded("image_uri", uri)
    for uri in ("http://h/a.png", "ftp://h/a.png", f"{path}\0"):
        with pytest.raises(MlflowException, match="is no path"):
            embedded("image_uri", uri)
    with pytest.raises(MlflowException, match="can't be read: NoSuchKey"):
        embedded("image_uri", "s3://pictures/set/none.png")
    with pytest.raises(MlflowException, match="row 0 has more than one of image, "):
        served.predict(pd.DataFrame({"image": [encoded(picture())], "image_uri": [path]}))


def test_rows_without_anything_to_embed_and_values_of_a_wrong_type_are_told(served: Any) -> None:
    model = served.unwrap_python_model()
    with pytest.raises(MlflowException, match="rows need a text or an image"):
        model.predict(None, pd.DataFrame({"txt": [TEXT]}))
    with pytest.raises(MlflowException, match="row 0: text is of type int"):
        model.predict(None, pd.DataFrame({"text": [7]}))
    (answer,) = model.predict(None, pd.DataFrame({"image_bytes": [bytearray(picture())]}))
    assert answer["image_embedding"] is not None


def test_an_empty_text_and_a_very_long_one_have_embeddings(served: Any) -> None:
    for answer in served.predict(pd.DataFrame({"text": ["", "word " * 5000, "[SEP] [PAD]"]})):
        assert all(math.isfinite(value) for value in answer["text_embedding"])


@pytest.mark.parametrize("name", ["alias", "version", "run", "folder"])
def test_a_model_is_found_by_any_of_its_names(
    registered: Registered, model: LoTLIP, model_folder: Path, name: str
) -> None:
    address = {
        "alias": f"models:/{NAME}@candidate",
        "version": f"models:/{NAME}/1",
        "run": registered.run_id,
        "folder": str(model_folder),
    }[name]
    found = fetch(address, registered.server.uri)
    assert digest(found) == digest(model)
    assert not found.training


def test_a_model_is_found_in_s3(s3_env: str, model: LoTLIP, model_folder: Path) -> None:
    ensure_bucket("s3://models")
    store = open_store("s3://models/one")
    for name, content in export_files(model_folder).items():
        store.write(name, content)
    store.write("notes/readme.txt", b"beside it")
    assert digest(fetch("s3://models/one/")) == digest(model)
    with pytest.raises(CheckpointError, match=r"s3://models/none is not an export folder"):
        fetch("s3://models/none")
    with pytest.raises(DataError, match="does not exist"):
        fetch("s3://no-such-bucket/one")
    store.write("model.safetensors", b"damaged")
    with pytest.raises(CheckpointError) as error:
        fetch("s3://models/one")
    assert "s3://models/one" in str(error.value)


@pytest.mark.parametrize(
    "address",
    [
        "models:/nothing@candidate",
        f"models:/{NAME}@champion",
        f"models:/{NAME}/99",
        f"models:/{NAME}",
        f"models:/{NAME}/latest/x",
        "models:/",
        "0" * 32,
    ],
)
def test_an_unknown_model_is_one_line(registered: Registered, address: str) -> None:
    with pytest.raises(TrackingError) as error:
        fetch(address, registered.server.uri)
    assert "\n" not in str(error.value)
    assert address in str(error.value)


def test_a_run_without_a_model_is_told(registered: Registered) -> None:
    run = registered.server.client.create_run("0")
    registered.server.client.set_terminated(run.info.run_id)
    with pytest.raises(TrackingError, match="has no model"):
        fetch(run.info.run_id, registered.server.uri)


def test_a_registered_model_of_another_kind_is_told(registered: Registered) -> None:
    source = Path(__file__).parent / "foreign_model.py"
    with mlflow.start_run():
        mlflow.pyfunc.log_model(
            name="model",
            python_model=str(source),
            registered_model_name="foreign",
            pip_requirements=["mlflow"],
        )
    with pytest.raises(CheckpointError, match=r"models:/foreign/1 is not a model of lotlip"):
        fetch("models:/foreign/1", registered.server.uri)


@pytest.mark.parametrize("address", ["/no/such/folder", "~/no-such-folder", "models", "abc123"])
def test_a_folder_that_is_not_there_is_told(address: str) -> None:
    with pytest.raises(CheckpointError, match="no such folder"):
        fetch(address)


def test_a_folder_that_lacks_its_weights_is_told(model_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(model_folder, tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").unlink()
    with pytest.raises(CheckpointError) as error:
        fetch(str(tmp_path / "model"))
    assert "\n" not in str(error.value)


def test_an_address_of_no_store_is_told() -> None:
    with pytest.raises((CheckpointError, ConfigError)):
        fetch("gs://bucket/model")


_ALONE = """
import importlib.util, json, sys
import mlflow, pandas
assert importlib.util.find_spec("lotlip") is None
model = mlflow.pyfunc.load_model(sys.argv[1])
print(json.dumps(model.predict(pandas.DataFrame({"text": [sys.argv[2]], "image": [sys.argv[3]]}))))
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_model_loads_where_there_is_nothing_but_its_requirements(
    registered: Registered, model: LoTLIP, tmp_path: Path
) -> None:
    address = f"models:/{NAME}@candidate"
    python = tmp_path / "environment" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "environment")], check=True)
    requirements = mlflow.pyfunc.get_model_dependencies(address)
    pip = [python, "-m", "pip", "install", "--quiet", "--requirement", requirements]
    subprocess.run(pip, check=True, timeout=500)
    image = base64.b64encode(picture()).decode()
    alone = [python, "-c", _ALONE, address, TEXT, image]
    environment = {"MLFLOW_TRACKING_URI": registered.server.uri, "PATH": os.environ["PATH"]}
    environment |= {"HOME": str(tmp_path), "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false"}
    told = subprocess.run(
        alone, capture_output=True, text=True, timeout=120, env=environment, cwd=tmp_path
    )
    assert told.returncode == 0, told.stderr
    (row,) = json.loads(told.stdout)
    for name, wanted in (
        ("text_embedding", embed_texts(model, [TEXT])[0]),
        ("image_embedding", embed_images(model, [picture()])[0]),
    ):
        torch.testing.assert_close(torch.tensor(row[name]), wanted, atol=1e-5, rtol=0)
