import copy
import html
import json
import pickle
import re
from concurrent.futures import ThreadPoolExecutor

import ftfy
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import BertTokenizerFast

from lotlip.errors import CheckpointError, ConfigError
from lotlip.tokenizer import Tokenizer
from lotlip.vocabulary import SPECIAL_PIECES

WORDS = "a dog cat castle st bernard the is of hello world cafe corner ##s sep cls pad"
PUNCTUATION = list(".,!?[]()'\"&;:#<>-/")
LETTERS = [*"abcdefghijklmnopqrstuvwxyz0123456789éüß猫狗", "😀", "¡"]
PIECES = [*SPECIAL_PIECES, *WORDS.split(), *PUNCTUATION, *LETTERS, *(f"##{c}" for c in LETTERS)]
VOCAB = {piece: number for number, piece in enumerate(dict.fromkeys(PIECES))}


def make(**changes) -> Tokenizer:
    config = {"num_corner_tokens": 2, "context_length": 32, "vocab_size": 200} | changes
    return Tokenizer(VOCAB, **config)


def reference(texts: list[str], num_corner_tokens: int = 0, context_length: int = 32):
    """The authors' procedure for raw texts, with the tokenizer of transformers."""
    corners = [f"[Corner{k}]" for k in range(num_corner_tokens)]
    bert = BertTokenizerFast(vocab=dict(VOCAB))
    bert.add_special_tokens({"additional_special_tokens": corners})
    texts = [" ".join(corners) + text.replace(". ", "[SEP]") for text in texts]
    texts = [html.unescape(html.unescape(ftfy.fix_text(text))).strip() for text in texts]
    texts = [re.sub(r"\s+", " ", text) for text in texts]
    return bert(texts, max_length=context_length, truncation=True)["input_ids"]


def ids(text: str) -> list[int]:
    return [VOCAB[piece] for piece in text.split()]


HARD_TEXTS = [
    "",
    " ",
    "Hello world.",
    "Hello. World. ",
    ". . . ",
    "a. . b",
    "A St. Bernard, e.g. a dog of 3.5 m. Is the cat a castle?!",
    "Café CAFÉ cafe\u0301 üß naïve",
    "猫狗 a猫b",
    "😀 dogs 😀😀",
    "unknown Ωmega \u200b\u00ad zero-width\x00 null\x07",
    "&#46; a &amp;amp; b &lt;br&gt; &am. p; &#4. 6;",
    "dog &amp. cat < &amp. a",
    "schÃ¶n. â€œquotedâ€\x9d. Ã©",
    "dog.\ncat.\tdog.\u00a0cat.  dog",
    "x" * 120 + " a",
    "dog " * 100,
    "a. " * 100,
    "[Corner]. [ SEP ] [sep] [Sep",
    "\x1b. b",
]
plain_texts = st.text(st.sampled_from("abdg3 .,!?é猫😀&#46;<\n\u00a0Ã¶â€œ\x1b-")) | st.text(
    st.characters(exclude_categories=["Cs"])
)


@pytest.mark.parametrize("num_corner_tokens", [0, 2])
def test_official_ids_are_those_of_the_authors_procedure(num_corner_tokens):
    tokenizer = make(num_corner_tokens=num_corner_tokens, vocab_size=len(VOCAB))
    expected = reference(HARD_TEXTS, num_corner_tokens)
    for text, want in zip(HARD_TEXTS, expected, strict=True):
        assert tokenizer.encode(text, official=True) == want, text


@pytest.mark.parametrize("num_corner_tokens", [0, 2])
def test_official_ids_are_those_of_the_authors_procedure_for_any_text(num_corner_tokens):
    tokenizer = make(num_corner_tokens=num_corner_tokens, vocab_size=len(VOCAB))

    @settings(max_examples=100, deadline=None)
    @given(st.lists(plain_texts, min_size=5, max_size=20))
    def check(texts):
        texts = [text for text in texts if "[" not in html.unescape(ftfy.fix_text(text))]
        padded = tokenizer(texts, official=True)
        for text, got, want in zip(texts, padded, reference(texts, num_corner_tokens), strict=True):
            assert got[: len(want)].tolist() == want, text
            assert not got[len(want) :].any()

    check()


def test_pieces_of_a_sentence_are_those_of_transformers():
    bert = BertTokenizerFast(vocab=dict(VOCAB))
    tokenizer = make(num_corner_tokens=0)
    for text in HARD_TEXTS:
        assert tokenizer.encode([text]) == bert(text, max_length=32, truncation=True)["input_ids"]


@pytest.mark.parametrize("lowercase", [True, False])
def test_words_met_before_give_the_pieces_of_transformers_in_any_text(monkeypatch, lowercase):
    bert = BertTokenizerFast(vocab=dict(VOCAB), do_lower_case=lowercase)
    tokenizer = make(num_corner_tokens=0, context_length=512, lowercase=lowercase)
    monkeypatch.setattr("lotlip.tokenizer._MOST_KNOWN", 50)  # so it starts anew now and then
    odd = ["caf\u00e9", "\t", "\x7f", "_"]
    words = st.sampled_from(["dog", "Dogs", "St.", "a" * 99, "b" * 101, *odd])
    texts = st.text(st.characters(max_codepoint=127)) | st.lists(words).map(" ".join)

    @settings(max_examples=200, deadline=None)
    @given(st.lists(texts.filter(lambda text: "[" not in text), min_size=1, max_size=5))
    def check(texts):
        for text, got in zip(texts, tokenizer._pieces_of(texts), strict=True):
            assert got == bert(text, add_special_tokens=False)["input_ids"], text

    check()


def test_case_is_kept_where_the_vocabulary_has_it():
    bert = BertTokenizerFast(vocab=dict(VOCAB), do_lower_case=False)
    tokenizer = make(num_corner_tokens=0, lowercase=False)
    for text in HARD_TEXTS:
        assert tokenizer.encode([text]) == bert(text, max_length=32, truncation=True)["input_ids"]
    assert tokenizer.encode("Dog cafe\u0301") != make(num_corner_tokens=0).encode("Dog cafe\u0301")


def test_a_text_is_its_sentences_between_separators():
    tokenizer = make()
    corners = [200, 201]
    expected = [VOCAB["[CLS]"], *corners, *ids("a st . bernard [SEP] the cat is 3 . 5 m . [SEP]")]
    assert tokenizer.encode("A St. Bernard. The cat is 3.5 m.") == expected
    assert tokenizer.encode(["A St. Bernard.", "The cat is 3.5 m."]) == expected


def test_an_inner_sentence_loses_one_full_stop_only():
    assert make().encode(["a dog...", "cat!", "m."])[3:] == ids(
        "a dog . . [SEP] cat ! [SEP] m . [SEP]"
    )


@pytest.mark.parametrize(
    "sentences", [["a dog.", " ", "\x07"], ["\x07", "", "a dog."], [".", "a dog."]]
)
def test_sentences_without_pieces_are_skipped(sentences):
    assert make().encode(sentences)[3:] == ids("a dog . [SEP]")


def test_an_empty_text_is_its_control_tokens():
    empty = [VOCAB["[CLS]"], 200, 201, VOCAB["[SEP]"]]
    assert make()(["", " ", [], [""]]).tolist() == [empty] * 4
    assert make()(["", " "], official=True).tolist() == [empty] * 2


def test_control_tokens_typed_in_a_caption_are_words():
    tokenizer = make()
    text = "a [SEP] [PAD] [CLS] [Corner0] dog"
    words = ids("a [ sep ] [ pad ] [ cls ] [ corner ##0 ] dog [SEP]")
    assert tokenizer.encode(text)[3:] == words
    assert tokenizer.encode(text, official=True)[3:] == words
    for hidden in ("&#91;SEP]", "&lsqb;SEP&rsqb;", "［SEP］"):
        assert tokenizer.encode(f"a {hidden} b. m [SEP] [SEP1]", official=True)[3:] == ids(
            "a [ sep ] b [SEP] m [ sep ] [ sep ##1 ] [SEP]"
        )


def test_a_long_text_is_cut_and_still_ends_in_a_separator():
    for official in (False, True):
        cut = make(context_length=8).encode("a dog is the castle of a cat", official=official)
        assert cut == [VOCAB["[CLS]"], 200, 201, *ids("a dog is the [SEP]")]


def test_the_full_length_is_that_of_a_text_that_is_not_cut():
    whole, short = make(context_length=32), make(context_length=8)
    for text in ("", "a dog", "a dog is the castle", "a dog. a cat. the castle", ["a", "dog"]):
        assert short.full_length(text) == whole.full_length(text) == len(whole.encode(text))
    assert len(make(context_length=8).encode("a dog. " * 9)) == 8


def test_a_batch_is_padded_to_its_longest_text_or_to_a_length():
    tokenizer = make()
    texts = ["a dog", ["a cat.", "the castle"], ""]
    batch = tokenizer(texts)
    assert (batch.dtype, batch.shape) == (np.int64, (3, 9))
    assert batch[0].tolist() == [*tokenizer.encode("a dog"), 0, 0, 0]
    assert tokenizer(texts, length=32).shape == (3, 32)
    assert (tokenizer(texts, length=32)[:, :9] == batch).all()
    assert tokenizer([]).shape == (0, 0)
    with pytest.raises(ConfigError, match="length=8 is too short for a text of 9 ids"):
        tokenizer(texts, length=8)


@pytest.mark.parametrize("official", [False, True])
def test_the_input_is_left_as_it_is(official):
    texts = ["Hello. World. ", "a dog."] + ([] if official else [["a.", "b."]])
    before = copy.deepcopy(texts)
    first = make()(texts, official=official)
    assert texts == before
    assert (make()(tuple(texts), official=official) == first).all()


def test_misuse_is_a_type_error():
    with pytest.raises(TypeError, match="use encode"):
        make()("a dog")
    with pytest.raises(TypeError, match="not lists of sentences"):
        make()([["a dog"]], official=True)


def test_half_a_surrogate_pair_from_broken_json_is_dropped():
    assert make().encode(json.loads('"a \\ud83d dog"')) == make().encode("a dog")


def test_decoding_shows_control_tokens_and_drops_padding():
    row = make()(["Cats. A castle"], length=20)[0]
    assert make().decode(row) == "[CLS] [Corner0] [Corner1] cats [SEP] a castle [SEP]"
    assert make().decode([199, 205]) == "[199] [205]"


def test_threads_share_a_tokenizer():
    tokenizer = make()
    batches = [[f"a dog {n}. The cat" for n in range(start, start + 50)] for start in range(20)]
    with ThreadPoolExecutor(8) as pool:
        for got, batch in zip(pool.map(tokenizer, batches), batches, strict=True):
            assert (got == make()(batch)).all()


def test_a_tokenizer_survives_pickling_and_files(tmp_path):
    tokenizer = make(lowercase=False, vocab_size=300, num_corner_tokens=3)
    tokenizer.save(tmp_path / "new" / "folder")
    assert sorted(path.name for path in (tmp_path / "new/folder").iterdir()) == [
        "tokenizer_config.json",
        "vocab.txt",
    ]
    copies = [
        pickle.loads(pickle.dumps(tokenizer)),  # noqa: S301
        Tokenizer.load(tmp_path / "new" / "folder"),
        Tokenizer.from_files(tokenizer.to_files()),
    ]
    for other in copies:
        assert other.corner_ids == (300, 301, 302)
        assert (other.context_length, other.vocab_size, other.lowercase) == (32, 300, False)
        assert other.digest == tokenizer.digest
        assert (other(HARD_TEXTS) == tokenizer(HARD_TEXTS)).all()


def test_the_digest_tells_tokenizers_apart():
    others = [make(), make(vocab_size=201), make(lowercase=False), make(num_corner_tokens=0)]
    assert len({tokenizer.digest for tokenizer in others}) == 4
    assert len(make().digest) == 12


def test_damaged_files_are_an_error():
    files = make().to_files()
    changes = [
        ({"vocab.txt": b"\xff"}, "not UTF-8"),
        ({"vocab.txt": b"[PAD]\na\na\n"}, "the piece 'a' twice"),
        ({"vocab.txt": b"[PAD]\n[UNK]\n"}, r"lacks \[CLS\], \[SEP\]"),
        ({"vocab.txt": b"[UNK]\n[PAD]\n[CLS]\n[SEP]\n"}, r"\[PAD\] must be piece 0 .* got 1"),
        ({"tokenizer_config.json": b"{"}, "does not parse"),
        ({"tokenizer_config.json": b"[]"}, "not a JSON object"),
        ({"tokenizer_config.json": b"{}"}, "lacks the number num_corner_tokens"),
    ]
    for change, message in changes:
        with pytest.raises(CheckpointError, match=message):
            Tokenizer.from_files({**files, **change})
    with pytest.raises(CheckpointError, match=r"lacks vocab\.txt"):
        Tokenizer.from_files({"tokenizer_config.json": b"{}"})


def test_a_missing_folder_is_an_error(tmp_path):
    with pytest.raises(CheckpointError, match=r"cannot read .*vocab\.txt"):
        Tokenizer.load(tmp_path / "none")


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"vocab_size": 5}, r"vocab_size must hold the \d+ pieces .* got 5"),
        ({"num_corner_tokens": -1}, "num_corner_tokens must be 0 or more, got -1"),
        ({"context_length": 4}, "context_length must be 5 or more .* got 4"),
    ],
)
def test_settings_that_cannot_work_are_an_error(changes, message):
    with pytest.raises(ConfigError, match=message):
        make(**changes)


def test_a_vocabulary_with_gaps_is_an_error():
    with pytest.raises(CheckpointError, match="ids 0 to"):
        Tokenizer(VOCAB | {"more": 150}, num_corner_tokens=0, context_length=9, vocab_size=200)


def bert_folder(folder, lowercase: bool, *, old: bool):
    BertTokenizerFast(vocab=dict(VOCAB), do_lower_case=lowercase).save_pretrained(folder)
    if old:
        (folder / "tokenizer.json").unlink()
        pieces = sorted(VOCAB, key=VOCAB.__getitem__)
        (folder / "vocab.txt").write_text("".join(f"{piece}\n" for piece in pieces))
    else:
        (folder / "vocab.txt").unlink(missing_ok=True)


@pytest.mark.parametrize("old", [True, False])
@pytest.mark.parametrize("lowercase", [True, False])
def test_the_folder_of_a_bert_model_is_read(tmp_path, lowercase, old):
    bert_folder(tmp_path, lowercase, old=old)
    got = Tokenizer.from_bert(tmp_path, num_corner_tokens=2, context_length=32)
    assert got.digest == make(vocab_size=len(VOCAB), lowercase=lowercase).digest
    assert got.corner_ids == (len(VOCAB), len(VOCAB) + 1)
    padded = Tokenizer.from_bert(tmp_path, num_corner_tokens=2, context_length=32, vocab_size=256)
    assert padded.corner_ids == (256, 257)


def test_a_bert_folder_is_lower_case_unless_it_says_otherwise(tmp_path):
    bert_folder(tmp_path, True, old=True)
    (tmp_path / "tokenizer_config.json").unlink()
    got = Tokenizer.from_bert(tmp_path, num_corner_tokens=0, context_length=32)
    assert got.encode("DOG") == ids("[CLS] dog [SEP]")


def test_a_folder_without_a_bert_vocabulary_is_an_error(tmp_path):
    with pytest.raises(CheckpointError, match=r"neither vocab\.txt nor tokenizer\.json"):
        Tokenizer.from_bert(tmp_path, num_corner_tokens=0, context_length=32)
    (tmp_path / "tokenizer.json").write_text('{"model": {"type": "BPE"}}')
    with pytest.raises(CheckpointError, match="not a WordPiece tokenizer"):
        Tokenizer.from_bert(tmp_path, num_corner_tokens=0, context_length=32)
