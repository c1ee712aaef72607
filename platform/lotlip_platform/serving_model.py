"""The model as MLflow serves it: rows of images and texts to embeddings.

MLflow stores this file itself with the model and runs it again at loading (models from code), so
nothing is pickled; the weights are the export folder among the artifacts.
"""

from __future__ import annotations

import base64
import math
import os
import re
from typing import Any
from urllib.parse import unquote

import pandas as pd
import requests
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from mlflow.pyfunc.model import PythonModel, PythonModelContext

from lotlip.errors import DataError, LotlipError
from lotlip.evaluate.embed import embed_images, embed_texts
from lotlip.export import load

ROOTS = "LOTLIP_IMAGE_ROOTS"
"""Names the folders and addresses below which `image_uri` may point, with commas between them. It
is for whoever starts the server to set: without it nobody can have files read by a request."""
_MAX_BYTES = 50_000_000
_TIMEOUT_S = 20.0
_IMAGES = ("image", "image_bytes", "image_uri")


class EmbeddingModel(PythonModel):
    """Each row has an image, a `text`, or both.

    An image is `image`, base64 of the encoded file; or `image_bytes`, the file itself; or
    `image_uri`, a path, file://, s3:// or https:// below one of ROOTS.

    Its answer has `image_embedding` and `text_embedding`, unit vectors as lists, or None where
    the row had no such input.
    """

    def load_context(self, context: PythonModelContext) -> None:
        self.model = load(context.artifacts["model"])

    def predict(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        context: PythonModelContext,
        model_input: pd.DataFrame,
        params: dict[str, Any] | None = None,
    ) -> list[dict[str, list[float] | None]]:
        try:
            if not {*_IMAGES, "text"} & set(model_input.columns):
                raise DataError(f"rows need a text or an image: {', '.join(('text', *_IMAGES))}")
            images = _embedded(
                _images(model_input), lambda v, rows: embed_images(self.model, v, rows)
            )
            texts = _embedded(
                _column(model_input, "text", str), lambda v, _: embed_texts(self.model, v)
            )
        except LotlipError as error:
            raise MlflowException(str(error), INVALID_PARAMETER_VALUE) from error
        return [
            {"image_embedding": image, "text_embedding": text}
            for image, text in zip(images, texts, strict=True)
        ]


def _embedded(values: list[Any], embed: Any) -> list[list[float] | None]:
    """Embeddings of the rows that have a value."""
    present = [index for index, value in enumerate(values) if value is not None]
    found: list[list[float] | None] = [None] * len(values)
    rows = [f"row {index}" for index in present]
    features = embed([values[index] for index in present], rows) if present else ()
    for index, feature in zip(present, features, strict=True):
        found[index] = feature.tolist()
    return found


def _images(rows: pd.DataFrame) -> list[bytes | None]:
    """The encoded image of each row, None where it has none. Raises: DataError."""
    images: list[bytes | None] = [None] * len(rows)
    readers: dict[str, tuple[type, Any]] = {
        "image": (str, _decoded),
        "image_bytes": (bytes, lambda content: content),
        "image_uri": (str, _read),
    }
    for name, (kind, read) in readers.items():
        for place, value in enumerate(_column(rows, name, kind)):
            if value is None:
                continue
            if images[place] is not None:
                raise DataError(f"row {place} has more than one of {', '.join(_IMAGES)}")
            try:
                images[place] = read(value)
            except DataError as error:
                raise DataError(f"row {place}: {error}") from error
    return images


def _column(rows: pd.DataFrame, name: str, kind: type) -> list[Any]:
    """Values, None where there is none: one left out arrives as None or as NaN."""
    values: list[Any] = list(rows[name]) if name in rows else [None] * len(rows)
    for place, value in enumerate(values):
        if isinstance(value, bytearray | memoryview):
            values[place] = bytes(value)
        elif value is None or (isinstance(value, float) and math.isnan(value)):
            values[place] = None
        elif not isinstance(value, kind):
            raise DataError(f"row {place}: {name} is of type {type(value).__name__}")
    return values


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except ValueError as error:
        raise DataError(f"image is not base64: {error}") from error


def _read(uri: str) -> bytes:
    """What lies at an address below one of ROOTS. Raises: DataError."""
    given = os.environ.get(ROOTS, "").split(",")
    roots = [root.strip() for root in given if root.strip()]
    scheme, _, rest = uri.rpartition("://")
    if "\0" in uri or scheme not in ("", "file", "s3", "https"):
        raise DataError(f"image_uri {uri!r} is no path, file://, s3:// or https:// address")
    if scheme in ("", "file"):
        where = os.path.realpath(rest)  # a link must not lead out of a root either
        below = [os.path.join(os.path.realpath(root.removeprefix("file://")), "") for root in roots]
        read = _of_file
    else:
        # As it goes over the wire, and as the other side may read it.
        where = requests.Request("GET", uri).prepare().url or "" if scheme == "https" else uri
        if ".." in re.split(r"[/\\]", unquote(where)):
            raise DataError(f"image_uri {uri!r} leads upwards")
        below = [root.rstrip("/") + "/" for root in roots]
        read = _of_s3 if scheme == "s3" else _of_web
    if not where.startswith(tuple(below)):
        raise DataError(
            f"image_uri {uri!r} is not below one of {ROOTS}, which whoever runs the server sets"
        )
    try:
        content = read(where)
    except Exception as error:  # whatever the file system, S3 or the web answers
        raise DataError(f"image_uri {uri!r} can't be read: {type(error).__name__}") from error
    if len(content) > _MAX_BYTES:
        raise DataError(f"image_uri {uri!r} has more than {_MAX_BYTES:,} bytes")
    return content


def _of_file(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read(_MAX_BYTES + 1)


def _of_s3(uri: str) -> bytes:
    import boto3  # the model is served without our storage, and mostly without S3

    bucket, _, key = uri.removeprefix("s3://").partition("/")
    answer = boto3.client("s3").get_object(Bucket=bucket, Key=key)
    return answer["Body"].read(_MAX_BYTES + 1)


def _of_web(uri: str) -> bytes:
    # No redirects: they could lead out of the roots.
    with requests.get(uri, timeout=_TIMEOUT_S, stream=True, allow_redirects=False) as answer:
        answer.raise_for_status()
        if answer.status_code != requests.codes.ok:
            raise ConnectionError(answer.status_code)
        return answer.raw.read(_MAX_BYTES + 1, decode_content=True)


set_model(EmbeddingModel())
