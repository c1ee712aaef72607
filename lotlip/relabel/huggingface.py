"""Captions by image-text-to-text models of transformers: LLaVA, Qwen-VL, InternVL, InstructBLIP."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from lotlip.errors import CheckpointError, ClusterError, ConfigError, DataError
from lotlip.images import decode
from lotlip.relabel.asking import Answer, GenerationConfig, Keep, Request

_SMALL_BYTES = 1 << 24
"""Files up to this are hashed whole to tell a local model apart, larger ones by their heads."""


@dataclass(frozen=True, kw_only=True)
class HuggingFaceConfig:
    """A model that is run in this process."""

    model: str = ""
    """A folder, or a name on the Hugging Face hub. Empty: another kind of captioner is used."""
    revision: str = ""
    """Of the hub: a branch, a tag or a commit; empty: the newest. The commit is recorded."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Of the weights; `auto` is how they are stored."""
    batch_size: int = 8
    """Images captioned at once."""

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ConfigError(
                f"captioner.huggingface.batch_size={self.batch_size} must be 1 or more"
            )


def revision_of(model: str, revision: str, key: str) -> str:
    """What a model is: of one on the hub the commit, of a folder a digest. Fetches no weights.

    `key` is the config key that names it. Raises: CheckpointError.
    """
    folder = _folder(model, key)
    if folder is not None:
        return f"sha256:{_digest(folder)}"
    from huggingface_hub import HfApi, snapshot_download  # only here is the network needed

    try:
        found = HfApi().model_info(model, revision=revision or None).sha
        return str(found)
    except (OSError, ValueError, RuntimeError) as error:
        with suppress(OSError, ValueError, RuntimeError):  # without the hub: as it was fetched
            kept = snapshot_download(model, revision=revision or None, local_files_only=True)
            return Path(kept).name  # snapshots lie in folders named by their commits
        reason = str(error).strip().splitlines()[0]
        raise CheckpointError(
            f"{key}={model} is no local folder, and the Hugging Face hub does not tell of it: "
            f"{reason}"
        ) from error


def _fetched(config: HuggingFaceConfig) -> Path:
    """The model's folder, fetched from the hub if need be. Raises: CheckpointError."""
    key = "captioner.huggingface.model"
    folder = _folder(config.model, key)
    if folder is not None:
        return folder
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(config.model, revision=config.revision or None))
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise CheckpointError(
            f"{key}={config.model} could not be fetched from the Hugging Face hub: {reason}"
        ) from error


def _folder(model: str, key: str) -> Path | None:
    """The local folder, if it is one. Raises: CheckpointError if it looks like one and isn't."""
    if Path(model).expanduser().is_dir():
        return Path(model).expanduser()
    if model.startswith((".", "/", "~")) or model.count("/") > 1:
        raise CheckpointError(f"{key}={model}: no such folder")
    return None


class HuggingFaceCaptioner:
    """A `Captioner` on this process' GPU, or its CPU."""

    def __init__(
        self, config: HuggingFaceConfig, generation: GenerationConfig, *, system: str, device: str
    ) -> None:
        """Raises: CheckpointError if the model can't be loaded."""
        # Seconds to import, and on all cores: only where a model is run.
        from transformers import AutoModelForImageTextToText, AutoProcessor

        folder = _fetched(config)
        self.batch_size = config.batch_size
        self._generation, self._system, self._device = generation, system, device
        try:
            self._processor: Any = AutoProcessor.from_pretrained(folder, padding_side="left")
            model: Any = AutoModelForImageTextToText.from_pretrained(folder, dtype=config.dtype)
        except (OSError, ValueError, ImportError, KeyError, TypeError) as error:
            reason = " ".join(str(error).split())[:300]
            raise CheckpointError(
                f"captioner.huggingface.model={config.model} can't be loaded as an "
                f"image-text-to-text model: {reason}"
            ) from error
        self._model = model.to(device).eval()
        ends = self._model.generation_config.eos_token_id
        self._ends = {ends} if isinstance(ends, int) else set(ends or ())
        tokenizer = self._processor.tokenizer
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token

    def answer(self, batches: Iterable[Sequence[Request]], keep: Keep) -> None:
        """See `Captioner`."""
        kept = None
        for batch in batches:
            answers = self._answers(batch)
            if kept is not None:
                kept.result()  # was written beside the model's work
            kept = keep(answers)
        if kept is not None:
            kept.result()

    def _answers(self, batch: Sequence[Request]) -> list[Answer]:
        """Where a batch can't be answered, those of it that can. Raises: ClusterError."""
        try:
            return self._generate(batch)
        except torch.OutOfMemoryError as error:
            raise ClusterError(
                f"{len(batch)} images at once are too many for this device's memory: lower "
                "captioner.huggingface.batch_size"
            ) from error
        except (ValueError, RuntimeError, IndexError, DataError) as error:
            if len(batch) > 1:
                return [answer for request in batch for answer in self._answers([request])]
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            (request,) = batch
            return [Answer(place=request.place, prompt=request.prompt, error=reason)]

    @torch.inference_mode()
    def _generate(self, batch: Sequence[Request]) -> list[Answer]:
        images = [decode(request.image) for request in batch]
        inputs = self._processor(
            images=images,
            text=[self._asked(request.text) for request in batch],
            padding=True,
            return_tensors="pt",
        )
        inputs = inputs.to(self._device, self._model.dtype)
        settings = self._generation
        drawn: dict[str, Any] = {"do_sample": False, "temperature": None, "top_p": None}
        if settings.temperature:
            drawn = {"do_sample": True, "temperature": settings.temperature}
            drawn["top_p"] = settings.top_p
            torch.manual_seed(batch[0].seed)
        made = self._model.generate(
            **inputs,
            max_new_tokens=settings.max_tokens,
            top_k=None,
            pad_token_id=self._processor.tokenizer.pad_token_id,
            **drawn,
        )
        asked, made = inputs["input_ids"].cpu(), made.cpu()
        num_asked = asked.shape[1]
        # Models that take embeddings give new tokens only, others the question before them.
        if made.shape[1] > num_asked and torch.equal(made[:, :num_asked], asked):
            made = made[:, num_asked:]
        mask = inputs["attention_mask"].sum(dim=1).tolist()
        return [
            self._answer(request, tokens, num_input)
            for request, tokens, num_input in zip(batch, made, mask, strict=True)
        ]

    def _asked(self, text: str) -> str:
        """The prompt as the model was trained on it."""
        if not getattr(self._processor, "chat_template", None):
            return f"{self._system}\n{text}" if self._system else text
        turns: list[dict[str, Any]] = []
        if self._system:
            turns.append({"role": "system", "content": [{"type": "text", "text": self._system}]})
        question = [{"type": "image"}, {"type": "text", "text": text}]
        turns.append({"role": "user", "content": question})
        return self._processor.apply_chat_template(turns, add_generation_prompt=True)

    def _answer(self, request: Request, tokens: Tensor, num_input: int) -> Answer:
        numbers = tokens.tolist()
        ends = [place for place, number in enumerate(numbers) if number in self._ends]
        whole = numbers[: ends[0]] if ends else numbers
        text = self._processor.tokenizer.decode(whole, skip_special_tokens=True)
        return Answer(
            place=request.place,
            prompt=request.prompt,
            text=text.strip(),
            is_whole=bool(ends),
            input_tokens=num_input,
            output_tokens=len(whole) + bool(ends),
        )


def _digest(folder: Path) -> str:
    found = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        size = path.stat().st_size
        found.update(f"{path.relative_to(folder).as_posix()} {size}\n".encode())
        with path.open("rb") as file:
            found.update(file.read(min(size, _SMALL_BYTES)))
    return found.hexdigest()[:16]
