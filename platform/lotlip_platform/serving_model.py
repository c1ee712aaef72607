"""The model as MLflow serves it: rows of images and texts to embeddings.

MLflow stores this file itself with the model and runs it again at loading (models from code), so
nothing is pickled; the weights are the export folder among the artifacts.
"""

from __future__ import annotations

import base64
import binascii
from typing import Any

import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from mlflow.pyfunc.model import PythonModel, PythonModelContext

from lotlip.errors import LotlipError
from lotlip.evaluate.embed import embed_images, embed_texts
from lotlip.export import load


class EmbeddingModel(PythonModel):
    """Each row has an `image` (base64 of the encoded file), a `text`, or both.

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
            images = _embedded(model_input, "image", lambda v: embed_images(self.model, _bytes(v)))
            texts = _embedded(model_input, "text", lambda v: embed_texts(self.model, v))
        except (LotlipError, binascii.Error) as error:
            raise MlflowException(str(error), INVALID_PARAMETER_VALUE) from error
        return [
            {"image_embedding": image, "text_embedding": text}
            for image, text in zip(images, texts, strict=True)
        ]


def _embedded(rows: pd.DataFrame, column: str, embed: Any) -> list[list[float] | None]:
    """Embeddings of the rows that have a value: one left out arrives as None or as NaN."""
    values = list(rows[column]) if column in rows else [None] * len(rows)
    present = [index for index, value in enumerate(values) if isinstance(value, str)]
    found: list[list[float] | None] = [None] * len(values)
    features = embed([values[index] for index in present]) if present else ()
    for index, feature in zip(present, features, strict=True):
        found[index] = feature.tolist()
    return found


def _bytes(encoded: list[str]) -> list[bytes]:
    return [base64.b64decode(image, validate=True) for image in encoded]


set_model(EmbeddingModel())
