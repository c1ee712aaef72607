"""A few images and texts with the embeddings that a model gave them when it was registered.

Whoever loads it later, to promote or to serve it, can see whether it still gives the same ones, bit
for bit. They are made on the CPU by one thread, since the order of sums depends on their number;
another kind of processor, or another version of torch, may round in another way.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from lotlip.data import scenes
from lotlip.errors import CheckpointError
from lotlip.evaluate.embed import embed_images, embed_texts
from lotlip.model import LoTLIP

_NUM_SAMPLES = 4
_SEED = 20_240_501
_INPUTS, _EMBEDDINGS = "inputs.safetensors", "embeddings.safetensors"


def make_probe(model: LoTLIP) -> dict[str, bytes]:
    """The files of a probe, by name, with the answers of `model`, which is on the CPU.

    The images are kept as they are: what draws or compresses them may change.
    """
    samples = [scenes.make_sample(_SEED, index) for index in range(_NUM_SAMPLES)]
    images = {
        f"image_{place}": torch.frombuffer(bytearray(sample.image), dtype=torch.uint8)
        for place, sample in enumerate(samples)
    }
    texts = [text for sample in samples for text in (sample.short, *sample.long.values())]
    about = {"texts": json.dumps(texts), "machine": machine()}
    return {
        _INPUTS: safetensors.torch.save(images, about),
        _EMBEDDINGS: safetensors.torch.save(
            _embedded(model, [sample.image for sample in samples], texts)
        ),
    }


def largest_difference(model: LoTLIP, files: Mapping[str, bytes]) -> float:
    """By how much an element of an embedding differs from the stored one; 0.0 if none does.

    Raises: CheckpointError if the probe is missing or damaged.
    """
    try:
        tensors = safetensors.torch.load(files[_INPUTS])
        texts = json.loads(_metadata(files[_INPUTS])["texts"])
        stored = safetensors.torch.load(files[_EMBEDDINGS])
        images = [bytes(tensors[f"image_{place}"].numpy()) for place in range(len(tensors))]
        found = _embedded(model, images, texts)
        return max(float((found[name] - stored[name]).abs().max()) for name in found)
    except (KeyError, ValueError, RuntimeError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"its probe is missing or damaged ({error!r})") from error


def made_on(files: Mapping[str, bytes]) -> str:
    """The machine that a probe's embeddings were made on."""
    return _metadata(files[_INPUTS])["machine"]


def machine() -> str:
    """What decides how this machine's processor rounds."""
    capability = torch.backends.cpu.get_cpu_capability()
    return f"{platform.machine()} {capability}, torch {torch.__version__}"


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch computes with one thread in here."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _embedded(model: LoTLIP, images: list[bytes], texts: list[str]) -> dict[str, Tensor]:
    with one_thread():
        return {"image": embed_images(model, images), "text": embed_texts(model, texts)}


def _metadata(content: bytes) -> dict[str, str]:
    """The texts in the header of a safetensors file."""
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length])["__metadata__"]
