"""Word pieces with corner tokens and sentence separators.

The ids of a text, with m corner tokens:

    [CLS] [Corner0] .. [Corner m-1] sentence 1 [SEP] sentence 2 [SEP] .. [SEP]

The pieces are BERT's (Devlin et al. 2019); the corners and the separators between sentences are
LoTLIP's. Corner k has the id `vocab_size + k`. Control tokens typed in a caption ("[SEP]", "[PAD]")
are words here, so no caption can place a separator or hide a part of itself.
"""

from __future__ import annotations

import hashlib
import html
import itertools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ftfy
import numpy as np
import tokenizers
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer

from lotlip.captions import split_sentences
from lotlip.errors import CheckpointError, ConfigError
from lotlip.vocabulary import (
    CONFIG_FILE,
    VOCAB_FILE,
    check_vocab,
    learn_vocab,
    parse_json,
    parse_vocab,
    read,
    read_bert_vocab,
)

# What BERT takes for words where nothing is to be cleaned: in printable ASCII.
_PLAIN_WORDS = re.compile(r"[A-Za-z0-9]+|[^A-Za-z0-9\s]")
_MOST_KNOWN = 1 << 16  # words
_MOST_LETTERS = 4_000_000  # of all of them: what strangers send has long words, too


class Tokenizer:
    """Turns captions into ids. It remembers words, but never changes its mind: threads may share
    one."""

    pad_id = 0

    def __init__(
        self,
        vocab: Mapping[str, int],
        *,
        num_corner_tokens: int,
        context_length: int,
        vocab_size: int,
        lowercase: bool = True,
    ) -> None:
        """`vocab` maps pieces to the ids 0, 1, ..; `[PAD]` is 0.

        `context_length` is the most ids of a text, with all control tokens. `vocab_size` is the
        number of the text tower's ordinary embedding rows, at least `len(vocab)`.

        Raises: ConfigError, and CheckpointError if the vocabulary is unusable.
        """
        check_vocab(vocab)
        if num_corner_tokens < 0:
            raise ConfigError(
                f"tokenizer num_corner_tokens must be 0 or more, got {num_corner_tokens}"
            )
        if context_length < num_corner_tokens + 3:
            raise ConfigError(
                f"tokenizer context_length must be {num_corner_tokens + 3} or more to hold [CLS], "
                f"{num_corner_tokens} corner tokens, a piece and [SEP], got {context_length}"
            )
        if vocab_size < len(vocab):
            raise ConfigError(
                f"tokenizer vocab_size must hold the {len(vocab)} pieces of the vocabulary, "
                f"got {vocab_size}"
            )
        self.num_corner_tokens = num_corner_tokens
        self.context_length = context_length
        self.vocab_size = vocab_size
        self.lowercase = lowercase
        self.unk_id, self.cls_id, self.sep_id = (vocab[p] for p in ("[UNK]", "[CLS]", "[SEP]"))
        self.corner_ids = tuple(range(vocab_size, vocab_size + num_corner_tokens))
        self._pieces = sorted(vocab, key=vocab.__getitem__)
        # No added tokens: with them the library would find "[SEP]" in a caption.
        self._word_pieces = tokenizers.Tokenizer(WordPiece(dict(vocab), unk_token="[UNK]"))
        self._word_pieces.normalizer = BertNormalizer(lowercase=lowercase)
        self._word_pieces.pre_tokenizer = BertPreTokenizer()
        self._known: dict[str, list[int]] = {}
        self._num_letters = 0

    def adapted(self, num_corner_tokens: int, context_length: int) -> Tokenizer:
        """One with the same word pieces. Raises: ConfigError."""
        return Tokenizer(
            {piece: number for number, piece in enumerate(self._pieces)},
            num_corner_tokens=num_corner_tokens,
            context_length=context_length,
            vocab_size=self.vocab_size,
            lowercase=self.lowercase,
        )

    def encode(
        self, sentences_or_text: str | Sequence[str], *, official: bool = False
    ) -> list[int]:
        """The ids of one text, unpadded; see `__call__`."""
        return self._encode_all([sentences_or_text], official)[0]

    def __call__(
        self,
        texts: Sequence[str | Sequence[str]],
        *,
        official: bool = False,
        length: int | None = None,
    ) -> np.ndarray:
        """Ids as int64 [n, L], padded with 0 to the longest text or to `length`.

        A text is a string, split with `split_sentences`, or its sentences. Each sentence but the
        last loses one final full stop, which the separator stands for; those without pieces are
        skipped. A text beyond `context_length` is cut; its last id is [SEP].

        `official` gives the ids of the authors' tokenizer, for their models and benchmark figures:
        every ". " separates, also in "e.g. a dog", and empty sentences keep their separators. Only
        control tokens typed in a text differ: here they are words.

        Raises: ConfigError if a text is longer than `length`.
        """
        if isinstance(texts, str):
            raise TypeError("Tokenizer takes a list of texts; use encode for a single one")
        all_ids = self._encode_all(texts, official)
        longest = max((len(ids) for ids in all_ids), default=0)
        if length is not None and length < longest:
            raise ConfigError(
                f"length={length} is too short for a text of {longest} ids; pad to a length up to "
                f"{self.context_length} or lower context_length"
            )
        padded = np.full((len(all_ids), length or longest), self.pad_id, dtype=np.int64)
        for row, ids in zip(padded, all_ids, strict=True):
            row[: len(ids)] = ids
        return padded

    def full_length(self, sentences_or_text: str | Sequence[str], *, official: bool = False) -> int:
        """How many ids a text would have if none were cut."""
        (body,) = self._bodies([sentences_or_text], official)
        return len(self._uncut(body))

    def decode(self, ids: Iterable[int]) -> str:
        """The text for human eyes: pieces joined, control tokens shown, padding dropped."""
        words: list[str] = []
        for number in map(int, ids):
            if number == self.pad_id:
                continue
            piece = self._piece(number)
            if piece.startswith("##") and words:
                words[-1] += piece[2:]
            else:
                words.append(piece)
        return " ".join(words)

    @classmethod
    def learn(
        cls,
        texts: Iterable[str],
        *,
        vocab_size: int,
        num_corner_tokens: int,
        context_length: int,
    ) -> Tokenizer:
        """A lower-case tokenizer whose pieces, at most `vocab_size`, are learned from `texts`.

        The same texts in any order give the same pieces on any machine. Raises: ConfigError.
        """
        return cls(
            learn_vocab(texts, vocab_size),
            num_corner_tokens=num_corner_tokens,
            context_length=context_length,
            vocab_size=vocab_size,
        )

    @classmethod
    def from_bert(
        cls,
        folder: Path,
        *,
        num_corner_tokens: int,
        context_length: int,
        vocab_size: int | None = None,
    ) -> Tokenizer:
        """The tokenizer of a BERT model in a Hugging Face folder.

        Needs vocab.txt or tokenizer.json, and heeds do_lower_case of tokenizer_config.json (default
        true). `vocab_size` defaults to the number of pieces. Raises: CheckpointError, ConfigError.
        """
        vocab = read_bert_vocab(Path(folder))
        path = Path(folder) / CONFIG_FILE
        config = parse_json(read(path), path) if path.is_file() else {}
        return cls(
            vocab,
            num_corner_tokens=num_corner_tokens,
            context_length=context_length,
            vocab_size=len(vocab) if vocab_size is None else vocab_size,
            lowercase=config.get("do_lower_case", True),
        )

    def to_files(self) -> dict[str, bytes]:
        """The tokenizer as named files: vocab.txt (line number = id) and tokenizer_config.json."""
        config = {
            "context_length": self.context_length,
            "do_lower_case": self.lowercase,
            "num_corner_tokens": self.num_corner_tokens,
            "vocab_size": self.vocab_size,
        }
        return {
            VOCAB_FILE: "".join(f"{piece}\n" for piece in self._pieces).encode(),
            CONFIG_FILE: (json.dumps(config, indent=2) + "\n").encode(),
        }

    @classmethod
    def from_files(cls, files: Mapping[str, bytes]) -> Tokenizer:
        """The inverse of `to_files`; further files are ignored. Raises: CheckpointError."""
        missing = [name for name in (VOCAB_FILE, CONFIG_FILE) if name not in files]
        if missing:
            raise CheckpointError(f"the tokenizer lacks {' and '.join(missing)}: export it again")
        config = parse_json(files[CONFIG_FILE], CONFIG_FILE)
        for name in ("num_corner_tokens", "context_length", "vocab_size"):
            if not isinstance(config.get(name), int):
                raise CheckpointError(f"{CONFIG_FILE} lacks the number {name}: export it again")
        return cls(
            parse_vocab(files[VOCAB_FILE]),
            num_corner_tokens=config["num_corner_tokens"],
            context_length=config["context_length"],
            vocab_size=config["vocab_size"],
            lowercase=config.get("do_lower_case", True),
        )

    def save(self, folder: Path) -> None:
        """Write `to_files` into `folder`, which is made if need be."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        for name, data in self.to_files().items():
            (Path(folder) / name).write_bytes(data)

    @classmethod
    def load(cls, folder: Path) -> Tokenizer:
        """What `save` wrote. Raises: CheckpointError."""
        paths = [Path(folder) / name for name in (VOCAB_FILE, CONFIG_FILE)]
        return cls.from_files({path.name: read(path) for path in paths})

    @property
    def digest(self) -> str:
        """12 hex digits that stand for exactly this tokenizer."""
        whole = hashlib.sha256()
        for name, data in sorted(self.to_files().items()):
            whole.update(f"{name} {len(data)}\n".encode() + data)
        return whole.hexdigest()[:12]

    def __reduce__(self) -> tuple[Any, ...]:
        return Tokenizer.from_files, (self.to_files(),)

    def _encode_all(self, texts: Sequence[str | Sequence[str]], official: bool) -> list[list[int]]:
        return [self._assemble(body) for body in self._bodies(texts, official)]

    def _bodies(
        self, texts: Sequence[str | Sequence[str]], official: bool
    ) -> list[list[list[int]]]:
        """The pieces of each sentence of each text."""
        split = [_split_official(text) if official else _sentences(text) for text in texts]
        flat = [whole_characters(text) for sentences in split for text in sentences]
        pieces = iter(self._pieces_of(flat))
        bodies = [list(itertools.islice(pieces, len(sentences))) for sentences in split]
        if not official:
            bodies = [_without_inner_stops(*pair) for pair in zip(split, bodies, strict=True)]
        return bodies

    def _pieces_of(self, texts: Sequence[str]) -> list[list[int]]:
        """The pieces of each text; those of a plain word are looked up once."""
        if len(self._known) > _MOST_KNOWN or self._num_letters > _MOST_LETTERS:
            self._known, self._num_letters = {}, 0
        known = self._known  # other threads may add to it
        plain = [
            _PLAIN_WORDS.findall(text) if text.isascii() and text.isprintable() else None
            for text in texts
        ]
        unknown = list({word for words in plain if words for word in words if word not in known})
        others = [text for text, words in zip(texts, plain, strict=True) if words is None]
        encodings = self._word_pieces.encode_batch_fast(
            [*unknown, *others], add_special_tokens=False
        )
        ids = iter([encoding.ids for encoding in encodings])
        known.update((word, next(ids)) for word in unknown)
        self._num_letters += sum(map(len, unknown))
        return [
            next(ids)
            if words is None
            else list(itertools.chain.from_iterable(map(known.__getitem__, words)))
            for words in plain
        ]

    def _assemble(self, body: Iterable[list[int]]) -> list[int]:
        """The ids of a text, cut to context_length."""
        ids = self._uncut(body)
        if len(ids) <= self.context_length:
            return ids
        return [*ids[: self.context_length - 1], self.sep_id]

    def _uncut(self, body: Iterable[list[int]]) -> list[int]:
        """Control tokens around and between the pieces of each sentence."""
        ids = [self.cls_id, *self.corner_ids]
        for number, sentence in enumerate(body):
            if number:
                ids.append(self.sep_id)
            ids += sentence
        return [*ids, self.sep_id]

    def _piece(self, number: int) -> str:
        if 0 <= number < len(self._pieces):
            return self._pieces[number]
        corner = number - self.vocab_size
        return f"[Corner{corner}]" if 0 <= corner < self.num_corner_tokens else f"[{number}]"


def whole_characters(text: str) -> str:
    """Without halves of surrogate pairs, as broken JSON escapes leave them behind."""
    return text.encode(errors="ignore").decode()


def _sentences(text: str | Sequence[str]) -> list[str]:
    return split_sentences(text) if isinstance(text, str) else list(text)


def _without_inner_stops(sentences: list[str], pieces: list[list[int]]) -> list[list[int]]:
    """The pieces of the sentences that have some; all but the last without one final full stop."""
    pairs = [(text, ids) for text, ids in zip(sentences, pieces, strict=True) if ids]
    # A full stop is a piece of its own, whatever stands before it.
    inner = [ids[:-1] if text.rstrip().endswith(".") else ids for text, ids in pairs[:-1]]
    return [ids for ids in inner if ids] + [ids for _, ids in pairs[-1:]]


def _split_official(text: str | Sequence[str]) -> list[str]:
    """The authors put "[SEP]" for every ". " and clean the whole text after that.

    Cleaning in that order matters: a separator that only cleaning brings to light ("&#46; ") is
    none, and repairs of the encoding and of HTML look at the text as a whole.
    """
    if not isinstance(text, str):
        raise TypeError("official=True takes texts, not lists of sentences")
    marker, number = "[SEP]", 0
    while (cleaned := _clean_official(text.replace(". ", marker))).count(marker) > text.count(". "):
        number += 1  # the text itself has this marker
        marker = f"[SEP{number}]"
    return cleaned.split(marker)


def _clean_official(text: str) -> str:
    """open_clip's cleaning "whitespace"."""
    fixed = html.unescape(html.unescape(ftfy.fix_text(text)))
    return " ".join(fixed.split())
