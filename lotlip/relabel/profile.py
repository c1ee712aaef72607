"""What the captions of one captioner are like, all together."""

from __future__ import annotations

import hashlib
import re
from array import array
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np

from lotlip.relabel.audit import AuditConfig, faults, normalised

_OPENING_WORDS = 4
_MOST_OPENINGS = 200_000
"""Different ones that are counted; of those that come later only known ones are."""
_POINT_EVERY = 1.1
"""The size of the vocabulary is noted where there are so many times the captions of before."""
_WORD = re.compile(r"[^\W\d_]+")


class CaptionProfile:
    """Lengths, words, openings, duplicates and faults of captions."""

    def __init__(self, audit: AuditConfig | None, count_tokens: Callable[[str], int]) -> None:
        """Without an `audit` nothing is called a fault."""
        self._audit, self._count_tokens = audit, count_tokens
        self.lengths = array("L")
        self.growth: list[tuple[int, int]] = []
        """Numbers of captions and of different words in them."""
        self.failed: Counter[str] = Counter()
        """By rule of the audit."""
        self._words: set[str] = set()
        self._openings: Counter[str] = Counter()
        self._hashes = array("Q")
        self._next_point = 1.0

    def add(self, caption: str, short: str) -> None:
        """A caption, and the short one of its image."""
        self.lengths.append(self._count_tokens(caption))
        if self._audit:
            self.failed.update(faults(caption, short, self._audit, is_whole=True))
        words = _WORD.findall(caption.lower())
        self._words.update(words)
        opening = " ".join(words[:_OPENING_WORDS])
        if opening in self._openings or len(self._openings) < _MOST_OPENINGS:
            self._openings[opening] += 1
        digest = hashlib.blake2b(normalised(caption).encode(errors="replace"), digest_size=8)
        self._hashes.append(int.from_bytes(digest.digest()))
        if self.num >= self._next_point:
            self.growth.append((self.num, len(self._words)))
            self._next_point = max(self.num + 1, self.num * _POINT_EVERY)

    @property
    def num(self) -> int:
        return len(self.lengths)

    @property
    def num_words(self) -> int:
        """Different words."""
        return len(self._words)

    @property
    def num_duplicates(self) -> int:
        """Captions that are the same, but for case and punctuation, as one of another image."""
        _, numbers = np.unique(np.frombuffer(self._hashes, np.uint64), return_counts=True)
        return int(numbers[numbers > 1].sum())

    def openings(self, most: int = 5) -> list[tuple[str, float]]:
        """The most frequent first words, and their shares of the captions."""
        return [(text, number / self.num) for text, number in self._openings.most_common(most)]

    def summary(self) -> dict[str, Any]:
        """The numbers in short, but for the lengths."""
        shares = {rule: round(number / self.num, 4) for rule, number in self.failed.items()}
        return {
            "different_words": self.num_words,
            "duplicates": round(self.num_duplicates / self.num, 4),
            "openings": {text: round(share, 4) for text, share in self.openings()},
            "failed": dict(sorted(shares.items())),
        }
