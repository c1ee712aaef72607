"""What a captioner is asked, and what it answers."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np

from lotlip.data.sample import Sample
from lotlip.errors import ConfigError


class Place(NamedTuple):
    """Which question it is, in its shard."""

    ask: int
    """0, or how often the audit has had the caption asked for again."""
    sample: int
    """Of the sample in its shard."""
    draw: int
    """Which of the sample's captions."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """One image with one question."""

    place: Place
    image: bytes
    """Encoded, as it lies in the shard; it decodes."""
    prompt: str
    """The name of the prompt."""
    text: str
    """What it says."""
    seed: int
    """For drawing the answer, where it is drawn: 31 bits."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What came of a request."""

    place: Place
    prompt: str
    text: str = ""
    is_whole: bool = True
    """False where it was cut at the most tokens."""
    error: str = ""
    """Why there is no text."""
    is_final: bool = False
    """Of an error: there never will be one. Others are asked about again in another life."""
    input_tokens: int = 0
    output_tokens: int = 0
    num_attempts: int = 1
    """Requests it took; those before the last one are spent, and brought nothing."""


Keep = Callable[[list[Answer]], "Future[None]"]
"""Takes answers that belong together; done when they can't be lost any more."""


class Captioner(Protocol):
    """A multimodal language model, wherever it runs."""

    @property
    def batch_size(self) -> int:
        """Requests that are answered together: what is answered depends on the whole of a batch."""
        ...

    def answer(self, batches: Iterable[Sequence[Request]], keep: Keep) -> None:
        """Answer all of them, and hand each batch's answers to `keep`.

        Raises: LotlipError if it can't go on, and what `keep` raises.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class PromptConfig:
    """What is asked. `{short}` in a text stands for the image's short caption."""

    texts: dict[str, str] = field(
        default_factory=lambda: {
            "detailed": "Describe the image in detail.",
            "parts": "Describe all that can be seen in the image, and where it is, in detail.",
            "story": "What is to be seen in this image? Mention each thing, its colour and place.",
            "paragraph": "Describe this image in a paragraph, to somebody who can't see it.",
        }
    )
    """By name. Each caption's is drawn from them, the same one whenever it is made."""
    per_sample: int = 1
    """Captions of a sample. The first is kept as NAME, others as NAME-2, NAME-3, ..."""
    system: str = ""
    """What the model is told before the question; empty: nothing."""
    seed: int = 0
    """Other seeds draw other prompts, and other captions where these are drawn."""

    def __post_init__(self) -> None:
        if not self.texts or not all(text.strip() for text in self.texts.values()):
            raise ConfigError("prompts.texts must hold one prompt or more, none of them empty")
        if self.per_sample < 1:
            raise ConfigError(f"prompts.per_sample={self.per_sample} must be 1 or more")
        if self.seed < 0:
            raise ConfigError(f"prompts.seed={self.seed} must be 0 or more")


@dataclass(frozen=True, kw_only=True)
class GenerationConfig:
    """How the captioner makes its texts."""

    max_tokens: int = 512
    """Of an answer, in the captioner's tokens; it is cut there."""
    temperature: float = 0.0
    """0 takes the likeliest token each time: the same question gets the same answer."""
    top_p: float = 1.0
    """Tokens are drawn from the likeliest that make up this share; needs a temperature."""

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise ConfigError(f"generation.max_tokens={self.max_tokens} must be 1 or more")
        if self.temperature < 0:
            raise ConfigError(f"generation.temperature={self.temperature} must be 0 or more")
        if not 0.0 < self.top_p <= 1.0:
            raise ConfigError(f"generation.top_p={self.top_p} must be in (0, 1]")


def make_request(sample: Sample, shard: str, place: Place, prompts: PromptConfig) -> Request:
    """The question at a place: a pure function of its arguments.

    A sample's captions have different prompts as far as there are, and so has one that is asked for
    again.
    """
    whose = f"{prompts.seed} {shard}/{place.sample}"
    names = sorted(prompts.texts)
    order = np.random.default_rng(_number(whose)).permutation(len(names))
    name = names[order[(place.draw + place.ask * prompts.per_sample) % len(names)]]
    return Request(
        place=place,
        image=sample.image,
        prompt=name,
        text=_clean(prompts.texts[name].replace("{short}", sample.short)),
        seed=_number(f"{whose} {place.draw} {place.ask}") % (1 << 31),
    )


def _clean(text: str) -> str:
    """Without halves of surrogate pairs, which no request can hold."""
    return text.encode(errors="replace").decode()


def _number(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode(errors="surrogatepass")).digest()[:8])
