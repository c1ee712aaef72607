import dataclasses
import json
import re
import shutil

import pytest
import safetensors.torch
import torch

from lotlip import export
from lotlip.errors import CheckpointError, ConfigError
from lotlip.model import PRESETS, LoTLIP
from lotlip.tokenizer import Tokenizer
from lotlip.vocabulary import SPECIAL_PIECES

PIECES = [*SPECIAL_PIECES, "a", "red", "dog", "castle", "on", "the", "left", "."]
TEXT = dataclasses.replace(PRESETS["tiny"].text, vocab_size=len(PIECES))
CONFIG = dataclasses.replace(PRESETS["tiny"], text=TEXT)


def make_tokenizer() -> Tokenizer:
    return Tokenizer(
        {piece: number for number, piece in enumerate(PIECES)},
        num_corner_tokens=TEXT.num_corner_tokens,
        context_length=TEXT.context_length,
        vocab_size=TEXT.vocab_size,
    )


def make_model(seed: int = 0, **changes) -> LoTLIP:
    torch.manual_seed(seed)
    return LoTLIP(dataclasses.replace(CONFIG, **changes), make_tokenizer()).eval()


@torch.no_grad()
def features(model: LoTLIP) -> tuple[torch.Tensor, torch.Tensor]:
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    assert model.tokenizer is not None
    ids = torch.from_numpy(model.tokenizer(["A red dog.", "On the left. A castle."]))
    return model.encode_image(images), model.encode_captions(ids[None].expand(2, -1, -1))


@pytest.fixture
def folder(tmp_path):
    export.save(make_model(), tmp_path / "deep" / "model")
    return tmp_path / "deep" / "model"


def test_a_loaded_model_gives_bitwise_the_same_features(folder):
    loaded, model = export.load(str(folder)), make_model()
    for got, expected in zip(features(loaded), features(model), strict=True):
        assert torch.equal(got, expected)
    assert not loaded.training
    assert loaded.config == CONFIG
    assert export.digest(loaded) == export.digest(model)


def test_the_path_of_the_weights_stands_for_their_folder(folder):
    assert export.digest(export.load(folder / "model.safetensors")) == export.digest(make_model())


def test_the_folder_holds_no_pickle(folder):
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["config.json", "model.safetensors", "tokenizer_config.json", "vocab.txt"]


def test_models_without_corner_tokens_and_with_a_locked_tower_survive(tmp_path):
    text = dataclasses.replace(TEXT, num_corner_tokens=0)
    image = dataclasses.replace(CONFIG.image, locked_layers=-1, pool="mean", projection=True)
    model = make_model(text=text, image=image)
    model.tokenizer = Tokenizer(
        {piece: number for number, piece in enumerate(PIECES)},
        num_corner_tokens=0,
        context_length=TEXT.context_length,
        vocab_size=TEXT.vocab_size,
    )
    export.save(model, tmp_path)
    for got, expected in zip(features(export.load(tmp_path)), features(model), strict=True):
        assert torch.equal(got, expected)


def test_where_pretrained_weights_came_from_need_not_exist_any_more(tmp_path):
    model = make_model(text=dataclasses.replace(TEXT, pretrained="/gone/bert"))
    export.save(model, tmp_path)
    assert export.load(tmp_path).config.text.pretrained == "/gone/bert"


def test_the_digest_tells_weights_config_and_tokenizer_apart():
    digests = {export.digest(make_model()), export.digest(make_model(seed=1))}
    digests.add(export.digest(make_model(text=dataclasses.replace(TEXT, dropout=0.5))))
    other = make_model()
    other.tokenizer = Tokenizer(
        {piece: number for number, piece in enumerate(reversed(PIECES[5:]), 5)}
        | {piece: number for number, piece in enumerate(SPECIAL_PIECES)},
        num_corner_tokens=2,
        context_length=TEXT.context_length,
        vocab_size=TEXT.vocab_size,
    )
    digests.add(export.digest(other))
    nudged = make_model()
    with torch.no_grad():
        nudged.logit_scale += 1e-6
    digests.add(export.digest(nudged))
    assert len(digests) == 5


def test_a_model_without_tokenizer_is_refused_and_nothing_is_written(tmp_path):
    with pytest.raises(CheckpointError, match="without tokenizer cannot be exported"):
        export.save(LoTLIP(CONFIG), tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_place_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CheckpointError, match="cannot write a model to"):
        export.save(make_model(), tmp_path / "file")


def edit_config(folder, change) -> None:
    path = folder / "config.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def drop_a_tensor(folder) -> None:
    path = folder / "model.safetensors"
    state = safetensors.torch.load_file(path)
    del state["logit_scale"]
    safetensors.torch.save_file(state, path)


def cut(folder) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def unknown_key(content) -> None:
    content["model"]["text"]["num_corners"] = 3


def wider(content) -> None:
    content["model"]["embed_dim"] = 48


def more_corner_tokens(content) -> None:
    content["model"]["text"]["num_corner_tokens"] = 4


@pytest.mark.parametrize(
    "damage,message",
    [
        (lambda f: (f / "config.json").unlink(), r"has no config\.json: is it a model\?"),
        (lambda f: (f / "config.json").write_text("{"), r"config\.json cannot be read"),
        (lambda f: (f / "config.json").write_text("[]"), "holds no JSON object"),
        (lambda f: (f / "config.json").write_bytes(b"\xff\xfe"), r"config\.json cannot be read"),
        (
            lambda f: edit_config(f, lambda c: c.update(format="lotlip-model-v9")),
            r"config\.json is not of format lotlip-model-v1",
        ),
        (lambda f: edit_config(f, lambda c: c.pop("model")), "model must be a group of keys"),
        (lambda f: edit_config(f, unknown_key), r"unknown key model\.text\.num_corners; did you"),
        (lambda f: edit_config(f, wider), r"model\.image\.width=32 differs from model\.embed_dim"),
        (lambda f: edit_config(f, more_corner_tokens), "the tokenizer was made for 2"),
        (lambda f: (f / "vocab.txt").unlink(), r"cannot read .*vocab\.txt"),
        (lambda f: (f / "tokenizer_config.json").write_text("{}"), "lacks the number"),
        (lambda f: (f / "model.safetensors").unlink(), r"neither model\.safetensors nor"),
        (cut, r"model\.safetensors is damaged"),
        (lambda f: (f / "model.safetensors").write_bytes(b""), r"model\.safetensors is damaged"),
        (drop_a_tensor, "lacks logit_scale"),
    ],
)
def test_a_damaged_folder_is_a_checkpoint_error_in_one_line(folder, damage, message):
    damage(folder)
    with pytest.raises(CheckpointError, match=message) as caught:
        export.load(folder)
    assert "\n" not in str(caught.value)


def test_paths_that_are_no_folder_are_errors(tmp_path):
    with pytest.raises(CheckpointError, match=r"there is no model at .*nowhere: no such folder"):
        export.load(tmp_path / "nowhere")
    (tmp_path / "model.pt").write_bytes(b"weights")
    wanted = re.escape(f"lotlip convert-official {tmp_path / 'model.pt'} DEST")
    with pytest.raises(CheckpointError, match=wanted):
        export.load(tmp_path / "model.pt")


def official_state(model: LoTLIP) -> dict[str, torch.Tensor]:
    """The model's weights under the names of the authors' checkpoint."""
    own = model.state_dict()
    parts = {
        "query": "attention.self.query",
        "key": "attention.self.key",
        "value": "attention.self.value",
        "output": "attention.output.dense",
        "norm1": "attention.output.LayerNorm",
        "fc1": "intermediate.dense",
        "fc2": "output.dense",
        "norm2": "output.LayerNorm",
    }
    text = {
        "embeddings.word_embeddings.weight": torch.cat(
            [
                own["text_tower.embeddings.words.weight"],
                own["text_tower.embeddings.corners"],
            ]
        ),
        "embeddings.position_embeddings.weight": own["text_tower.embeddings.positions.weight"],
        "embeddings.token_type_embeddings.weight": torch.stack(
            [own["text_tower.embeddings.segment"], torch.full((32,), 9.0)]
        ),
    }
    for kind in ("weight", "bias"):
        text[f"embeddings.LayerNorm.{kind}"] = own[f"text_tower.embeddings.norm.{kind}"]
        text[f"pooler.dense.{kind}"] = own[f"text_tower.pooler.{kind}"]
        for layer in range(TEXT.num_layers):
            for ours, theirs in parts.items():
                value = own[f"text_tower.layers.{layer}.{ours}.{kind}"]
                text[f"encoder.layer.{layer}.{theirs}.{kind}"] = value
    image = {k: v for k, v in own.items() if k.startswith("image_tower.")}
    return {
        "logit_scale": own["logit_scale"],
        "text.proj.weight": own["text_projection.weight"],
        **{f"text.transformer.{key}": value for key, value in text.items()},
        **{f"visual.trunk.{k.removeprefix('image_tower.')}": v for k, v in image.items()},
    }


@pytest.fixture
def official(tmp_path):
    """The authors' checkpoint and the folder of its BERT's vocabulary."""
    state = {f"module.{key}": value for key, value in official_state(make_model()).items()}
    torch.save({"epoch": 1, "state_dict": state}, tmp_path / "model.pt")
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "vocab.txt").write_text("\n".join(PIECES) + "\n")
    return tmp_path


def convert(tmp_path) -> LoTLIP:
    return export.convert_official(
        tmp_path / "model.pt", tmp_path / "out", bert=tmp_path / "bert", model_config=CONFIG
    )


def test_an_official_checkpoint_becomes_an_export_folder(official):
    converted = convert(official)
    loaded = export.load(official / "out")
    assert export.digest(loaded) == export.digest(converted) == export.digest(make_model())
    for got, expected in zip(features(loaded), features(make_model()), strict=True):
        assert torch.equal(got, expected)


@pytest.mark.parametrize(
    "damage,error,message",
    [
        (lambda p: (p / "model.pt").write_bytes(b"x"), CheckpointError, "not a PyTorch file"),
        (lambda p: (p / "model.pt").unlink(), CheckpointError, "does not exist"),
        (
            lambda p: torch.save({"logit_scale": torch.zeros(())}, p / "model.pt"),
            CheckpointError,
            "the official checkpoint lacks",
        ),
        (lambda p: shutil.rmtree(p / "bert"), CheckpointError, r"neither vocab\.txt nor"),
        (
            lambda p: (p / "bert" / "vocab.txt").write_text("\n".join([*PIECES, "cat"])),
            ConfigError,
            f"vocab_size={len(PIECES)}, but the tokenizer was made for {len(PIECES) + 1}",
        ),
    ],
)
def test_nothing_is_written_when_a_conversion_fails(official, damage, error, message):
    damage(official)
    with pytest.raises(error, match=message):
        convert(official)
    assert not (official / "out").exists()
