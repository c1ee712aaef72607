"""BERT vocabularies: learned from texts, read from files, checked."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer, WhitespaceSplit
from tokenizers.trainers import WordPieceTrainer

from lotlip.errors import CheckpointError, ConfigError

SPECIAL_PIECES = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
VOCAB_FILE = "vocab.txt"
CONFIG_FILE = "tokenizer_config.json"


def learn_vocab(texts: Iterable[str], vocab_size: int) -> dict[str, int]:
    """At most `vocab_size` lower-case pieces learned from `texts`; `SPECIAL_PIECES` come first.

    The same texts in any order give the same pieces in every process. Raises: ConfigError.
    """
    least = len(SPECIAL_PIECES) + 2
    if vocab_size < least:
        raise ConfigError(f"tokenizer vocab_size must be {least} or more, got {vocab_size}")
    normalizer, pre_tokenizer = BertNormalizer(lowercase=True), BertPreTokenizer()
    words: Counter[str] = Counter()
    for text in texts:
        words.update(w for w, _ in pre_tokenizer.pre_tokenize_str(normalizer.normalize_str(text)))
    letters = _letters(words, (vocab_size - len(SPECIAL_PIECES)) // 2)
    # The library numbers letters at random and breaks ties between merges by these numbers. Letters
    # handed over as special tokens have fixed numbers, so the outcome is fixed too.
    pieces = [piece for letter in letters for piece in (letter, f"##{letter}")]
    trainer = WordPieceTrainer(
        vocab_size=vocab_size, special_tokens=[*SPECIAL_PIECES, *pieces], show_progress=False
    )
    word_pieces = tokenizers.Tokenizer(WordPiece({"[UNK]": 0}, unk_token="[UNK]"))
    word_pieces.pre_tokenizer = WhitespaceSplit()
    known = frozenset(letters)
    # A word with another letter will be [UNK] as a whole.
    spelled = sorted(word for word in words if known.issuperset(word))
    word_pieces.train_from_iterator((" ".join([w] * words[w]) for w in spelled), trainer)
    return word_pieces.get_vocab()


def _letters(words: Mapping[str, int], limit: int) -> list[str]:
    """The most frequent letters. Each takes two pieces: to begin a word and to go on with it."""
    counts: Counter[str] = Counter()
    for word, count in words.items():
        for letter in word:
            counts[letter] += count
    return sorted(counts, key=lambda letter: (-counts[letter], letter))[:limit]


def check_vocab(vocab: Mapping[str, int]) -> None:
    """Raises: CheckpointError if no tokenizer can be made of these pieces."""
    missing = [piece for piece in SPECIAL_PIECES[:4] if piece not in vocab]
    if missing:
        raise CheckpointError(f"the vocabulary lacks {', '.join(missing)}: is it BERT's vocab.txt?")
    if vocab["[PAD]"] != 0:
        raise CheckpointError(f"[PAD] must be piece 0 of the vocabulary, got {vocab['[PAD]']}")
    if sorted(vocab.values()) != list(range(len(vocab))):
        raise CheckpointError(
            f"the {len(vocab)} pieces of the vocabulary must have the ids 0 to {len(vocab) - 1}"
        )
    if any("\n" in piece for piece in vocab):
        raise CheckpointError("a piece of the vocabulary holds a line break")


def parse_vocab(data: bytes) -> dict[str, int]:
    """The pieces of a vocab.txt, one a line in the order of their ids. Raises: CheckpointError."""
    try:
        lines = data.decode().replace("\r\n", "\n").removesuffix("\n").split("\n")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{VOCAB_FILE} is not UTF-8 text: copy it again") from error
    vocab = {piece: number for number, piece in enumerate(lines)}
    if len(vocab) < len(lines):
        double = Counter(lines).most_common(1)[0][0]
        raise CheckpointError(f"{VOCAB_FILE} has the piece {double!r} twice")
    return vocab


def read_bert_vocab(folder: Path) -> dict[str, int]:
    """The pieces of a BERT model in a Hugging Face folder. Raises: CheckpointError."""
    if (folder / VOCAB_FILE).is_file():
        return parse_vocab(read(folder / VOCAB_FILE))
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise CheckpointError(
            f"{folder} has neither {VOCAB_FILE} nor {path.name}: copy one from the BERT model"
        )
    model = parse_json(read(path), path).get("model")
    if not isinstance(model, dict) or model.get("type") != "WordPiece":
        raise CheckpointError(f"{path} is not a WordPiece tokenizer: a BERT model is needed")
    return model["vocab"]


def parse_json(data: bytes, name: str | Path) -> dict[str, Any]:
    """The object in a JSON file; `name` is for the error. Raises: CheckpointError."""
    try:
        parsed = json.loads(data)
    except ValueError as error:
        raise CheckpointError(f"{name} does not parse: {error}; copy it again") from error
    if not isinstance(parsed, dict):
        raise CheckpointError(f"{name} is not a JSON object; copy it again")
    return parsed


def read(path: Path) -> bytes:
    """Raises: CheckpointError."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from error
