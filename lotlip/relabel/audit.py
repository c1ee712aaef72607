"""Whether a caption is fit to be trained on."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass, field
from typing import Literal

import py3langid

from lotlip.errors import ConfigError

Action = Literal["keep", "again", "drop"]
RULES = (
    *("length", "refusal", "repetition", "truncation", "language", "overlap", "similarity"),
    *("duplicate", "empty"),
)
_NGRAM = 4
_SHORTEST_TO_TELL = 40
"""Letters; the language of a shorter text is a guess."""
_ENDS = (".", "!", "?", "…", '"', "”", "'", "’", ")", "。", "！", "？", "」")
_WORD = re.compile(r"[^\W_]+")
# What says nothing: of articles, forms of "to be", prepositions.
_EMPTY_WORDS = frozenset(
    (
        *("a", "an", "the", "and", "or", "of", "in", "on", "at", "to", "for", "with", "by", "from"),
        *("is", "are", "was", "were", "be", "been", "it", "its", "this", "that", "as", "into"),
        *("over", "under", "near", "photo", "picture", "image", "stock"),
    )
)

REFUSALS = (
    r"\bas an? (ai|artificial intelligence|(large )?language model|assistant)\b",
    r"\bi('m| am) (sorry|unable|not able)\b",
    r"\bi (can ?not|can't|could not|couldn't|do not|don't) "
    r"(see|view|access|open|assist|help|provide|identify|have (the ability|access))\b",
    r"\bi apologi[sz]e\b",
    r"\bno image (was|is|has been) (provided|attached|given|visible)\b",
    r"\b(please|you can) (provide|upload|share|attach) (the|an|your) image\b",
    r"^(sure|certainly|of course|okay|absolutely)\b[,!.:]",
    r"^here('s| is| are) (a|an|the|your|some) .{0,60}\b(caption|description|paragraph)\b",
    r"<\|?(im_start|im_end|endoftext|image|assistant|user)\|?>|\b(USER|ASSISTANT):",
)
"""Refusals, and what models say besides the caption; looked for whatever the case."""


@dataclass(frozen=True, kw_only=True)
class AuditConfig:
    """What a caption must be like, and what becomes of one that isn't."""

    min_tokens: int = 16
    """Words and signs of punctuation, as the text tower's tokenizer parts them; 0: no limit."""
    max_tokens: int = 0
    """The same; 0: no limit."""
    refusals: tuple[str, ...] = REFUSALS
    """Regular expressions; a caption in which one is found is no caption."""
    max_repetition: float = 0.3
    """Share of its runs of four words that were there before; 1: no limit."""
    languages: tuple[str, ...] = ()
    """ISO 639-1 codes, as in [en]; empty: any. Told of captions of 40 letters or more."""
    min_overlap: float = 0.0
    """Share of the short caption's words that come again; web alt-texts often name what nobody can
    see, so be careful."""
    model: str = ""
    """An export folder of a trained model, here or s3://, that tells how well caption and image fit
    together, see min_similarity; empty: nobody tells."""
    min_similarity: float = 0.0
    """Cosine of their features; lotlip data stats --model tells what captions have."""
    max_duplicates: int = 0
    """How many samples of a shard may have the same caption, if it passes the other rules; 0: any
    number."""
    on_fail: dict[str, Action] = field(default_factory=dict)
    """By rule: length, refusal, repetition, truncation, language, overlap, similarity, duplicate,
    empty. `again` asks again, up to max_asks, and then drops; `keep` only counts. Those not named:
    again, but for truncation, which is kept, and duplicate, which is dropped."""
    max_asks: int = 2
    """How often a caption is asked for at most."""
    max_dropped_share: float = 0.05
    """Of a shard's captions; with more of them the run stops, and tells why."""

    def __post_init__(self) -> None:
        for name in ("min_tokens", "max_tokens", "max_duplicates"):
            if getattr(self, name) < 0:
                raise ConfigError(f"audit.{name}={getattr(self, name)} must be 0 or more")
        for name in ("max_repetition", "min_overlap", "max_dropped_share"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ConfigError(f"audit.{name}={getattr(self, name)} must be in [0, 1]")
        if self.max_asks < 1:
            raise ConfigError(f"audit.max_asks={self.max_asks} must be 1 or more")
        if not -1.0 <= self.min_similarity <= 1.0:
            raise ConfigError(f"audit.min_similarity={self.min_similarity} must be in [-1, 1]")
        if self.model.startswith("models:/"):
            raise ConfigError(
                f"audit.model={self.model} must be an export folder, which workers reach: "
                "lotlip models export makes one"
            )
        for rule in self.on_fail:
            if rule not in RULES:
                raise ConfigError(f"audit.on_fail.{rule}: rules are {', '.join(RULES)}")
        for pattern in self.refusals:
            try:
                _any_of((pattern,))
            except re.error as error:
                raise ConfigError(f"audit.refusals: {pattern!r}: {error}") from error

    def action(self, rule: str) -> Action:
        """What becomes of a caption that fails a rule."""
        defaults: dict[str, Action] = {"truncation": "keep", "duplicate": "drop"}
        return self.on_fail.get(rule, defaults.get(rule, "again"))


def faults(caption: str, short: str, audit: AuditConfig, *, is_whole: bool) -> list[str]:
    """The rules that a caption fails, but for `similarity`, which takes a model to tell, and
    `duplicate`, which takes the others.

    `is_whole` is false where the captioner cut it.
    """
    if not caption.strip():
        return ["empty"]
    length = num_tokens(caption)
    found = {
        "length": length < audit.min_tokens or 0 < audit.max_tokens < length,
        "refusal": is_refusal(caption, audit.refusals),
        "repetition": repetition(caption) > audit.max_repetition,
        "truncation": not is_whole or is_cut(caption),
        "language": bool(audit.languages) and language(caption) not in (*audit.languages, ""),
        "overlap": overlap(caption, short) < audit.min_overlap,
    }
    return [rule for rule, fails in found.items() if fails]


def verdict(failed: list[str], audit: AuditConfig) -> Action:
    """The strictest of what the rules call for."""
    actions = {audit.action(rule) for rule in failed}
    return "drop" if "drop" in actions else "again" if "again" in actions else "keep"


def num_tokens(caption: str) -> int:
    """Words and signs of punctuation."""
    return len(re.findall(r"[^\W_]+|[^\w\s]", caption))


def repetition(caption: str) -> float:
    """The share of runs of four words that were there before; 0 for a shorter text."""
    words = _words(caption)
    runs = [tuple(words[i : i + _NGRAM]) for i in range(len(words) - _NGRAM + 1)]
    return 1 - len(set(runs)) / len(runs) if runs else 0.0


def is_refusal(caption: str, patterns: tuple[str, ...] = REFUSALS) -> bool:
    """Whether it says that, or what else, in place of a caption."""
    return _any_of(patterns).search(caption.strip().replace("’", "'")) is not None


def is_cut(caption: str) -> bool:
    """Whether it breaks off: the last sentence does not end."""
    return not caption.rstrip().endswith(_ENDS)


def language(caption: str) -> str:
    """The ISO 639-1 code of its language; empty if it is too short to tell."""
    if sum(letter.isalpha() for letter in caption) < _SHORTEST_TO_TELL:
        return ""
    return str(py3langid.classify(caption)[0])


def overlap(caption: str, short: str) -> float:
    """The share of the short caption's words that come again; 1 if none of them says anything."""
    wanted = set(_words(short)) - _EMPTY_WORDS
    return len(wanted & set(_words(caption))) / len(wanted) if wanted else 1.0


def normalised(caption: str) -> str:
    """The same for captions that differ in case, spaces and punctuation only."""
    return " ".join(_words(caption))


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


@functools.lru_cache
def _any_of(patterns: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(f"(?:{pattern})" for pattern in patterns) or r"(?!)", re.IGNORECASE)
