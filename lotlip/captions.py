"""Sentences of a long caption, and the captions that one training step draws from a sample.

LoTLIP trains an image with its short caption and with long captions at once. A sub-caption is a run
of sentences of a long caption.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from lotlip.data.sample import Sample
from lotlip.errors import ConfigError, DataError

Caption = list[str]
"""The sentences of one caption, in order."""

_LIST_MARKER = re.compile(r"\s*+(?:[-*•]|\d{1,2}[.)])\s++(?=\S)")
_OPENERS = "\"'“‘«([*「『（【《"
# Stops, what closes with them, white space, and the next word with its full stop.
_STOPS = re.compile(
    r"([.!?…。！？｡]++)([\"'”’»)\]*」』）】》]*+)"
    rf"(?=(\s*+)[{re.escape(_OPENERS)}]*+([^\W_]*+\.?+))"
)
_CJK_STOPS = frozenset("。！？｡")
_LONGEST_WORD = 16  # characters looked at before a full stop; longer than any abbreviation

# Never the end of a sentence: something always follows.
_TITLES = re.compile(
    r"mr|mrs|ms|mx|dr|prof|rev|hon|gen|col|lt|capt|cpt|sgt|maj|cmdr|gov|sen|rep|pres|mt|messrs|mme"
    r"|mlle|e\.g|i\.e|eg|ie|vs|cf|viz|approx|ca|incl|esp|resp"
)
# The same, but only before a number ("No. 5"), since they are words as well.
_NUMBERED = re.compile(r"no|nos|fig|figs|vol|vols|p|pp|ch|sec")
# These may end a sentence; so may a capital letter ("J. Smith") and dotted letters ("U.S.").
_AMBIGUOUS = re.compile(r"st|ft|etc|inc|ltd|co|corp|jr|sr|bros|ave|blvd|rd|dept|est|ph\.d")
_DOTTED_LETTERS = re.compile(r"[^\W\d_](?:\.[^\W\d_])+")
# Words that start a sentence far more often than they follow a name.
_STARTERS = re.compile(
    "A|Above|Additionally|All|Also|An|And|Another|Around|As|At|Behind|Below|Beneath|Beside|Beyond"
    "|Both|But|By|Each|Every|From|He|Her|Here|His|However|I|If|In|Inside|It|Its|Many|Meanwhile|Most"
    "|Near|Nearby|Next|No|On|One|Other|Our|Out|Outside|Over|She|Several|So|Some|That|The|Their|Then"
    "|There|These|They|This|Those|Three|To|Together|Two|Under|We|What|When|Where|While|With|You"
)


def split_sentences(text: str) -> list[str]:
    """The sentences of `text`, stripped, each with its punctuation; only list markers are lost.

    A line break ends a sentence; a marker at the start of a line ("- ", "* ", "• ", "1. ", "1) ")
    is dropped. A full stop, an ellipsis, "!" or "?" ends one when white space follows; a CJK stop
    always does. Abbreviations, initials and numbers do not. Where only the meaning could tell ("the
    U.S. Army", "in the U.S. The flag") the sentence ends if the next word is a capitalised common
    starter such as "The" or "It". A missed boundary is the preferred error: it leaves two sentences
    whole, a wrong one cuts one.
    """
    sentences: list[str] = []
    for line in text.splitlines():
        marker = _LIST_MARKER.match(line)
        start = marker.end() if marker else 0
        for stop in _STOPS.finditer(line, start):
            if _ends_sentence(line, stop):
                sentences.append(line[start : stop.end()].strip())
                start = stop.end()
        sentences.append(line[start:].strip())
    return [sentence for sentence in sentences if sentence]


def _ends_sentence(line: str, stop: re.Match[str]) -> bool:
    stops, closers, space, next_word = stop.groups()
    if stop.end() == len(line) or not _CJK_STOPS.isdisjoint(stops):
        return True
    if not space:
        return False
    if closers and next_word[:1].islower():
        return False  # "Stop!" he says
    if stops != ".":
        is_ellipsis = set(stops) <= {".", "…"}
        return not (is_ellipsis and next_word[:1].islower())
    before = line[max(0, stop.start() - _LONGEST_WORD) : stop.start()]
    word = before.split()[-1] if before and not before[-1].isspace() else ""
    return _ends_after(word.lstrip(_OPENERS), next_word)


def _ends_after(word: str, next_word: str) -> bool:
    """Whether a full stop between these two words ends the sentence."""
    lowered = word.lower()
    if _TITLES.fullmatch(lowered):
        return False
    if _NUMBERED.fullmatch(lowered) and next_word[:1].isdigit():
        return False
    is_initial = len(word) == 1 and word.isupper()
    if is_initial or _AMBIGUOUS.fullmatch(lowered) or _DOTTED_LETTERS.fullmatch(word):
        return _STARTERS.fullmatch(next_word) is not None
    return True


def split_sentences_official(text: str) -> list[str]:
    """The authors' splitting for benchmarks: at line breaks, "</s>" and every ".", all dropped.

    Source: the retrieval data loaders of LoTLIP. It breaks decimals: "3.5" gives "3" and "5".
    """
    parts = re.split(r"\n|</s>|\.", text)
    return [part.strip() for part in parts if part.strip()]


def assemble_official(text: str) -> str:
    """The benchmark caption as the authors hand it to their tokenizer."""
    return ". ".join(split_sentences_official(text))


@dataclass(frozen=True, kw_only=True)
class CaptionConfig:
    """Which captions of a sample one training step sees. Raises: ConfigError."""

    short_caption: bool = True
    """Text 0 is the short caption; false trains on long captions alone."""
    num_sub_captions: int = 1
    """Sub-captions drawn from the long captions each step; 0 trains on the short caption alone."""
    sentences_per_sub_caption: int = 0
    """Consecutive sentences in a sub-caption; 0 takes the whole long caption."""
    captioners: tuple[str, ...] = ()
    """Whose long captions may be drawn; empty allows all that a sample has."""
    first_sentence: bool = True
    """Keep the first sentence of a long caption, which tends to sum it up; false drops it."""

    def __post_init__(self) -> None:
        for name in ("num_sub_captions", "sentences_per_sub_caption"):
            value = getattr(self, name)
            if value < 0:
                raise ConfigError(f"captions.{name} must be 0 or more, got {value}")
        if len(set(self.captioners)) != len(self.captioners) or "" in self.captioners:
            got = list(self.captioners)
            raise ConfigError(f"captions.captioners must be different names, got {got}")
        if self.num_captions == 0:
            raise ConfigError(
                "captions.num_sub_captions must be 1 or more when captions.short_caption is false, "
                f"got {self.num_sub_captions}"
            )

    @property
    def num_captions(self) -> int:
        """Texts of every sample: the short caption, if any, and the sub-captions."""
        return int(self.short_caption) + self.num_sub_captions


@dataclass(frozen=True)
class Drawn:
    """A caption that was drawn."""

    pick: str
    """Which it is: `short`, or captioner and sentences, as in `llava[2:5]`."""
    caption: Caption


def draw_captions(
    sample: Sample, config: CaptionConfig, rng: np.random.Generator
) -> tuple[Drawn, ...]:
    """`config.num_captions` captions: the short one, then the sub-captions.

    For each sub-caption a captioner is drawn uniformly, then a window of its sentences; a caption
    shorter than the window is taken whole. A pure function of its arguments and the state of `rng`.

    Raises: DataError if the sample has no long caption of the permitted captioners.
    """
    drawn = [Drawn("short", split_sentences(sample.short))] if config.short_caption else []
    if config.num_sub_captions:
        names = _captioners(sample, config)
        for _ in range(config.num_sub_captions):
            name = names[rng.integers(len(names))]
            drawn.append(_draw_window(name, split_sentences(sample.long[name]), config, rng))
    return tuple(drawn)


def _captioners(sample: Sample, config: CaptionConfig) -> list[str]:
    available = sorted(name for name, caption in sample.long.items() if caption.strip())
    permitted = [name for name in available if not config.captioners or name in config.captioners]
    if not permitted:
        wanted = ", ".join(config.captioners) or "any captioner"
        raise DataError(
            f"sample {sample.key}: no long caption by {wanted}, "
            f"it has {', '.join(available) or 'none'}; change captions.captioners or relabel the "
            "data"
        )
    return permitted


def _draw_window(
    captioner: str, sentences: Caption, config: CaptionConfig, rng: np.random.Generator
) -> Drawn:
    first = int(not config.first_sentence and len(sentences) > 1)
    num_sentences = len(sentences) - first
    size = config.sentences_per_sub_caption or num_sentences
    num_windows = max(1, num_sentences - size + 1)
    start = first + int(rng.integers(num_windows))
    window = sentences[start : start + size]
    return Drawn(f"{captioner}[{start}:{start + len(window)}]", window)
