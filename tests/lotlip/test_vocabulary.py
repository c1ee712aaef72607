import json
import os
import random
import subprocess
import sys

import pytest

from lotlip.errors import ConfigError
from lotlip.tokenizer import Tokenizer
from lotlip.vocabulary import SPECIAL_PIECES


def learn(texts: list[str], vocab_size: int = 120) -> Tokenizer:
    return Tokenizer.learn(texts, vocab_size=vocab_size, num_corner_tokens=2, context_length=32)


def random_texts() -> list[str]:
    """Words of few letters, so that many merges are equally frequent."""
    source = random.Random(0)
    words = ["".join(source.choices("abcdefghij", k=source.randint(2, 6))) for _ in range(600)]
    return [" ".join(source.choices(words, k=8)) for _ in range(100)]


LEARN_AND_PRINT = """
import sys, json
from lotlip.tokenizer import Tokenizer
texts = json.load(sys.stdin)
print(Tokenizer.learn(texts, vocab_size=300, num_corner_tokens=0, context_length=32).digest)
"""


def test_the_same_texts_give_the_same_pieces_in_every_process():
    texts = random_texts()
    digests = set()
    for seed in ("0", "1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", LEARN_AND_PRINT],
            input=json.dumps(texts),
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        )
        digests.add(done.stdout)
        texts.reverse()
    assert len(digests) == 1


def test_learned_pieces_spell_the_texts_they_were_learned_from():
    texts = [f"A {colour} castle, near the Café. 猫" for colour in ("red", "green", "blue")] * 5
    tokenizer = learn(texts)
    lines = tokenizer.to_files()["vocab.txt"].decode().splitlines()
    assert lines[:5] == list(SPECIAL_PIECES)
    assert "castle" in lines
    assert len(lines) <= 120
    assert tokenizer.corner_ids == (120, 121)
    assert not (tokenizer(texts) == tokenizer.unk_id).any()


def test_rare_letters_give_way_when_the_vocabulary_is_small():
    tokenizer = learn(["aaa bbb aaa bbb ab", "z"], vocab_size=10)
    assert len(tokenizer.to_files()["vocab.txt"].splitlines()) <= 10
    assert tokenizer.unk_id not in tokenizer.encode("ab ba")
    assert tokenizer.unk_id in tokenizer.encode("z")


def test_a_vocabulary_without_room_for_letters_is_an_error():
    with pytest.raises(ConfigError, match="vocab_size must be 7 or more, got 6"):
        learn(["a"], vocab_size=6)
