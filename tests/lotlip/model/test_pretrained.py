"""Weights made elsewhere: folders as transformers and timm write them, the authors' checkpoints."""

import dataclasses
import json
import os
import re
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    BertConfig,
    BertForPreTraining,
    BertModel,
    ViTConfig,
    ViTForImageClassification,
    ViTModel,
)

from lotlip.errors import CheckpointError, ConfigError
from lotlip.model import PRESETS, LoTLIP
from lotlip.model.image_tower import ImageTower
from lotlip.model.packing import pack
from lotlip.model.pretrained import (
    build,
    find_folder,
    load_bert,
    load_image_tower,
    load_official,
)
from lotlip.model.text_tower import TextTower
from lotlip.model.weight_files import read_official
from lotlip.tokenizer import Tokenizer
from lotlip.vocabulary import SPECIAL_PIECES

TINY = PRESETS["tiny"]
IDS = torch.tensor([[2, 1024, 1025, 17, 99, 3, 512, 3], [2, 1024, 1025, 8, 3, 0, 0, 0]])
M = TINY.text.num_corner_tokens


def bert_config(**changes) -> BertConfig:
    fields = {
        "vocab_size": 1024,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 128,
        "max_position_embeddings": 128,
        "initializer_range": 0.3,
    }
    return BertConfig(**(fields | changes))


def vit_config(**changes) -> ViTConfig:
    fields = {
        "image_size": 32,
        "patch_size": 16,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 128,
        "layer_norm_eps": 1e-6,
        "initializer_range": 0.3,
    }
    return ViTConfig(**(fields | changes))


def plain_text_tower() -> TextTower:
    return TextTower(dataclasses.replace(TINY.text, num_corner_tokens=0)).eval()


@torch.no_grad()
def assert_is_bert(tower: TextTower, bert: BertModel) -> None:
    ids = torch.cat([IDS[:, :1], IDS[:, 3:]], dim=1)
    expected = bert.eval()(input_ids=ids, attention_mask=(ids != 0).long()).pooler_output
    torch.testing.assert_close(tower(pack(ids, 0)), expected, atol=1e-5, rtol=0)


def rewrite(folder: Path, change, *, as_bin: bool = False) -> None:
    """Put another state dict in place of the one in a folder."""
    path = folder / "model.safetensors"
    state = change(safetensors.torch.load_file(path))
    path.unlink()
    if as_bin:
        torch.save(state, folder / "pytorch_model.bin")
    else:
        safetensors.torch.save_file(state, path)


def legacy(state: dict[str, Tensor]) -> dict[str, Tensor]:
    names = (("LayerNorm.weight", "LayerNorm.gamma"), ("LayerNorm.bias", "LayerNorm.beta"))
    renamed = {}
    for key, value in state.items():
        for new, old in names:
            key = key.replace(new, old)
        renamed[key] = value
    ids = torch.arange(128)[None]
    return renamed | {"bert.embeddings.position_ids": ids}


def test_bert_folders_of_every_kind_load(tmp_path):
    plain = BertModel(bert_config())
    plain.save_pretrained(tmp_path / "plain")
    tower = plain_text_tower()
    load_bert(tower, str(tmp_path / "plain"))
    assert_is_bert(tower, plain)
    heads = BertForPreTraining(bert_config())
    heads.save_pretrained(tmp_path / "heads")
    tower = plain_text_tower()
    load_bert(tower, str(tmp_path / "heads"))
    assert_is_bert(tower, heads.bert)
    for as_bin in (False, True):
        folder = tmp_path / f"legacy-{as_bin}"
        heads.save_pretrained(folder)
        rewrite(folder, legacy, as_bin=as_bin)
        tower = plain_text_tower()
        load_bert(tower, str(folder))
        assert_is_bert(tower, heads.bert)


def test_bert_without_a_pooler_leaves_ours_and_the_corner_tokens_random(tmp_path):
    bert = BertModel(bert_config(), add_pooling_layer=False)
    bert.save_pretrained(tmp_path)
    tower = TextTower(TINY.text)
    before = {name: value.clone() for name, value in tower.state_dict().items()}
    load_bert(tower, str(tmp_path))
    kept = {n for n, v in tower.state_dict().items() if torch.equal(v, before[n])}
    ones_and_zeros = {n for n in before if "norm" in n or n.endswith(".bias")}
    assert kept - ones_and_zeros == {"embeddings.corners", "pooler.weight"}


def test_a_bert_of_another_size_is_an_error_that_names_the_key(tmp_path):
    BertModel(bert_config(vocab_size=1000)).save_pretrained(tmp_path)
    wanted = re.escape(
        "embeddings.word_embeddings.weight has shape [1000, 32], the model needs [1024, 32]"
    )
    with pytest.raises(CheckpointError, match=wanted):
        load_bert(plain_text_tower(), str(tmp_path))


def test_another_number_of_heads_is_an_error_though_the_shapes_agree(tmp_path):
    BertModel(bert_config(num_attention_heads=4)).save_pretrained(tmp_path / "bert")
    with pytest.raises(CheckpointError, match=r"has 4 heads, but model\.text\.num_heads=2"):
        load_bert(plain_text_tower(), str(tmp_path / "bert"))
    ViTModel(vit_config(num_attention_heads=4)).save_pretrained(tmp_path / "vit")
    with pytest.raises(CheckpointError, match=r"has 4 heads, but model\.image\.num_heads=2"):
        load_image_tower(ImageTower(TINY.image), str(tmp_path / "vit"))


def timm_names(tower: ImageTower) -> dict[str, Tensor]:
    """The tensors as timm names them; written down here, not derived from our names."""
    state = tower.state_dict()
    names = ["cls_token", "pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias"]
    layers = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
    for block in range(TINY.image.num_layers):
        for layer in layers:
            names += [f"blocks.{block}.{layer}.weight", f"blocks.{block}.{layer}.bias"]
    names += ["norm.weight", "norm.bias"]
    return {name: torch.randn_like(state[name]) for name in names}


@torch.no_grad()
def test_vit_folders_of_every_kind_load(tmp_path):
    images = torch.rand(2, 3, 32, 32)
    for kind in ("model", "classifier"):
        whole = (
            ViTModel(vit_config())
            if kind == "model"
            else ViTForImageClassification(vit_config(num_labels=7))
        )
        whole.eval().save_pretrained(tmp_path / kind)
        vit = whole.vit if kind == "classifier" else whole
        tower = ImageTower(TINY.image).eval()
        load_image_tower(tower, str(tmp_path / kind))
        expected = vit(pixel_values=images).last_hidden_state[:, 0]
        torch.testing.assert_close(tower(images), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("as_bin", [False, True])
def test_a_timm_folder_loads_without_its_head(tmp_path, as_bin):
    tower = ImageTower(TINY.image)
    state = timm_names(tower)
    head = {"head.weight": torch.zeros(10, 32), "head.bias": torch.zeros(10)}
    safetensors.torch.save_file(state | head, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "vit_tiny"}))
    rewrite(tmp_path, dict, as_bin=as_bin)
    load_image_tower(tower, str(tmp_path))
    assert all(torch.equal(tower.state_dict()[name], value) for name, value in state.items())


@pytest.mark.parametrize(
    "change,message",
    [
        (lambda s: s.pop("blocks.1.attn.qkv.bias"), "lacks blocks.1.attn.qkv.bias"),
        (
            lambda s: s.update({"dist_token": torch.zeros(1)}),
            "has dist_token, which this model has no place for",
        ),
        (
            lambda s: s.update({"pos_embed": torch.zeros(1, 197, 32)}),
            "pos_embed has shape [1, 197, 32], the model needs [1, 5, 32]",
        ),
    ],
)
def test_every_tensor_of_an_image_tower_is_accounted_for(tmp_path, change, message):
    tower = ImageTower(TINY.image)
    state = timm_names(tower)
    change(state)
    safetensors.torch.save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=re.escape(message)):
        load_image_tower(tower, str(tmp_path))


@pytest.mark.parametrize("key", ["vit.norm.weight", "layernorm.weight"])
def test_no_second_key_fills_a_tensor_of_a_timm_tower(tmp_path, key):
    state = timm_names(ImageTower(TINY.image)) | {key: torch.full((32,), 7.0)}
    safetensors.torch.save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=f"has {key}, which this model has no place for"):
        load_image_tower(ImageTower(TINY.image), str(tmp_path))


@pytest.mark.parametrize(
    "key", ["norm.weight", "layernorm.weight", "vit.norm.weight", "vit.blocks.0.attn.qkv.bias"]
)
def test_no_second_key_fills_a_tensor_of_a_vit(tmp_path, key):
    ViTForImageClassification(vit_config(num_labels=7)).save_pretrained(tmp_path)
    rewrite(tmp_path, with_(**{key: torch.full((32,), 7.0)}))
    with pytest.raises(CheckpointError, match=f"has {key}, which this model has no place for"):
        load_image_tower(ImageTower(TINY.image), str(tmp_path))


@pytest.mark.parametrize(
    "key",
    [
        "pooler.bias",
        "bert.pooler.bias",
        "bert.embeddings.corners",
        "bert.embeddings.LayerNorm.gamma",
        "embeddings.LayerNorm.weight",
    ],
)
def test_no_second_key_fills_a_tensor_of_a_text_tower(tmp_path, key):
    BertForPreTraining(bert_config()).save_pretrained(tmp_path)
    rewrite(tmp_path, with_(**{key: torch.full((32,), 7.0)}))
    with pytest.raises(CheckpointError, match=f"has {key}, which this model has no place for"):
        load_bert(plain_text_tower(), str(tmp_path))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("word_embeddings", torch.zeros(())),
        ("token_type_embeddings", torch.zeros(())),
        ("token_type_embeddings", torch.zeros(0, 32)),
        ("token_type_embeddings", torch.zeros(1, 32)),
    ],
)
def test_tables_of_a_bert_in_a_wrong_shape_are_told(tmp_path, name, value):
    BertForPreTraining(bert_config()).save_pretrained(tmp_path)
    key = f"bert.embeddings.{name}.weight"
    rewrite(tmp_path, with_(**{key: value}))
    wanted = re.escape(f"{key} has shape {list(value.shape)}, the model needs [")
    with pytest.raises(CheckpointError, match=wanted):
        load_bert(plain_text_tower(), str(tmp_path))


def test_weights_that_are_whole_numbers_are_told(tmp_path):
    BertModel(bert_config()).save_pretrained(tmp_path)
    rewrite(tmp_path, lambda state: {key: value.long() for key, value in state.items()})
    with pytest.raises(CheckpointError, match=r"holds int64, the model needs floating point"):
        load_bert(plain_text_tower(), str(tmp_path))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("hidden_act", "gelu_new"),
        ("layer_norm_eps", 1e-5),
        ("position_embedding_type", "relative_key"),
        ("is_decoder", True),
        ("model_type", "roberta"),
    ],
)
def test_a_bert_that_computes_otherwise_is_refused(tmp_path, name, value):
    BertModel(bert_config()).save_pretrained(tmp_path)
    assert_setting_is_refused(tmp_path, name, value, load_bert, plain_text_tower())


@pytest.mark.parametrize(
    ("name", "value"), [("hidden_act", "relu"), ("layer_norm_eps", 0.1), ("qkv_bias", False)]
)
def test_a_vit_that_computes_otherwise_is_refused(tmp_path, name, value):
    ViTModel(vit_config()).save_pretrained(tmp_path)
    assert_setting_is_refused(tmp_path, name, value, load_image_tower, ImageTower(TINY.image))


def assert_setting_is_refused(folder: Path, name: str, value, load, tower: nn.Module) -> None:
    path = folder / "config.json"
    settings = json.loads(path.read_text())
    path.write_text(json.dumps(settings | {name: value}))
    with pytest.raises(CheckpointError, match=re.escape(f"config.json says {name}={value}, ")):
        load(tower, str(folder))
    settings.pop(name, None)
    path.write_text(json.dumps(settings))
    load(tower, str(folder))


def test_folders_without_readable_weights_are_one_line_errors(tmp_path):
    with pytest.raises(CheckpointError, match=r"neither model\.safetensors nor pytorch_model\.bin"):
        load_bert(plain_text_tower(), str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0not json at all!")
    with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged"):
        load_bert(plain_text_tower(), str(tmp_path))
    (tmp_path / "model.safetensors").unlink()
    torch.save([torch.zeros(1)], tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="no state dict"):
        load_bert(plain_text_tower(), str(tmp_path))


def test_sources_that_cannot_be_found_name_the_config_key(tmp_path, monkeypatch):
    with pytest.raises(
        CheckpointError, match=r"^model\.text\.pretrained=/no/such: no such folder$"
    ):
        find_folder("/no/such", "model.text.pretrained")
    with pytest.raises(CheckpointError, match=r"model\.image\.pretrained=builtin:nothing"):
        find_folder("builtin:nothing", "model.image.pretrained")
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "bert").mkdir()
    assert find_folder("~/bert", "model.text.pretrained") == tmp_path / "bert"


def test_a_hub_name_out_of_reach_is_one_line(tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    for name in ("someone/no-such-bert", "not a name!"):
        with pytest.raises(CheckpointError) as caught:
            find_folder(name, "model.text.pretrained")
        message = str(caught.value)
        assert message.startswith(f"model.text.pretrained={name} is no local folder and could not")
        assert "\n" not in message


def test_build_fills_the_towers_its_config_names(tmp_path):
    bert = BertModel(bert_config())
    bert.save_pretrained(tmp_path / "bert")
    state = timm_names(ImageTower(TINY.image))
    (tmp_path / "vit").mkdir()
    safetensors.torch.save_file(state, tmp_path / "vit" / "model.safetensors")
    config = dataclasses.replace(
        TINY,
        image=dataclasses.replace(TINY.image, pretrained=str(tmp_path / "vit")),
        text=dataclasses.replace(TINY.text, pretrained=str(tmp_path / "bert")),
    )
    model = build(config)
    assert torch.equal(model.image_tower.state_dict()["norm.bias"], state["norm.bias"])
    words = bert.embeddings.word_embeddings.weight
    assert torch.equal(model.text_tower.embeddings.words.weight, words)


def test_build_refuses_a_tokenizer_made_for_another_tower():
    vocab = {piece: number for number, piece in enumerate(SPECIAL_PIECES)}
    tokenizer = Tokenizer(vocab, num_corner_tokens=1, context_length=96, vocab_size=1024)
    wanted = r"model\.text\.num_corner_tokens=2, but the tokenizer was made for 1"
    with pytest.raises(ConfigError, match=wanted):
        build(TINY, tokenizer)


class Official(nn.Module):
    """The parts of the authors' model, under the names of their checkpoint."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.bert = BertModel(bert_config(vocab_size=1024 + M, attn_implementation="eager")).eval()
        self.proj = nn.Linear(32, 32, bias=False)
        self.trunk = timm_names(ImageTower(TINY.image))
        self.logit_scale = torch.tensor(3.21)

    def state(self) -> dict[str, Tensor]:
        text = {f"text.transformer.{key}": value for key, value in self.bert.state_dict().items()}
        return {
            "logit_scale": self.logit_scale,
            **{f"visual.trunk.{key}": value for key, value in self.trunk.items()},
            **text,
            "text.transformer.embeddings.position_ids": torch.arange(128)[None],
            "text.proj.weight": self.proj.weight.detach(),
        }

    @torch.no_grad()
    def encode_text(self, ids_BSL: Tensor) -> Tensor:
        """[CLS] of text 0; [CLS] and corner tokens of the others."""
        num_images, num_texts, length = ids_BSL.shape
        ids = ids_BSL.flatten(0, 1)
        seen = torch.zeros(len(ids), length, length)
        for text in range(len(ids)):
            for query in range(length):
                keys = [0] if query not in range(1, M + 1) else []
                keys += [key for key in range(M + 1, length) if ids[text, key] != 0]
                keys += [query] if query <= M else []
                seen[text, query, keys] = 1.0
        additive = (1.0 - seen[:, None]) * torch.finfo(torch.float32).min
        states = self.bert(input_ids=ids, attention_mask=additive).last_hidden_state
        pooled = self.proj(torch.tanh(self.bert.pooler.dense(states[:, : M + 1])))
        pooled = pooled.view(num_images, num_texts, M + 1, -1)
        features = torch.cat([pooled[:, 0, :1], pooled[:, 1:].flatten(1, 2)], dim=1)
        return F.normalize(features, dim=-1)


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("wrapped", [False, True])
@torch.no_grad()
def test_an_official_checkpoint_gives_the_authors_features(tmp_path, prefix, wrapped):
    official = Official()
    state = {prefix + key: value for key, value in official.state().items()}
    path = tmp_path / "model.pt"
    torch.save({"epoch": 3, "name": "run", "state_dict": state} if wrapped else state, path)
    model = load_official(read_official(path), TINY)
    ids_BSL = torch.stack([IDS, IDS.flip(0), IDS], dim=1)
    features = model.encode_captions(ids_BSL)
    assert features.shape == (2, 7, 32)
    torch.testing.assert_close(features, official.encode_text(ids_BSL), atol=1e-5, rtol=0)
    cls = official.encode_text(IDS[:, None])[:, 0]
    torch.testing.assert_close(model.encode_text(IDS), cls, atol=1e-5, rtol=0)
    assert float(model.logit_scale) == pytest.approx(3.21)
    for name, value in official.trunk.items():
        assert torch.equal(model.image_tower.state_dict()[name], value)
    assert not model.training


IN_TEXT = "text.transformer."
WORDS = f"{IN_TEXT}embeddings.word_embeddings.weight"
SEGMENTS = f"{IN_TEXT}embeddings.token_type_embeddings.weight"


def without(*keys: str):
    return lambda state: {key: value for key, value in state.items() if key not in keys}


def with_(**tensors: Tensor):
    return lambda state: state | tensors


@pytest.mark.parametrize(
    "change,message",
    [
        (without("logit_scale"), "lacks logit_scale"),
        (without("text.proj.weight"), "lacks text.proj.weight"),
        (without("visual.trunk.blocks.1.norm2.bias"), "lacks visual.trunk.blocks.1.norm2.bias"),
        (
            without(f"{IN_TEXT}encoder.layer.1.output.dense.bias"),
            f"lacks {IN_TEXT}encoder.layer.1.output.dense.bias",
        ),
        (without(WORDS), f"lacks {WORDS}"),
        (without(SEGMENTS), f"lacks {SEGMENTS}"),
        (lambda state: {}, "lacks logit_scale (and"),
        (with_(logit_bias=torch.zeros(1)), "has logit_bias, which"),
        (with_(**{"visual.trunk.head.weight": torch.zeros(2)}), "has visual.trunk.head.weight, wh"),
        (
            with_(**{"text.proj.weight": torch.zeros(16, 32)}),
            "text.proj.weight has shape [16, 32], the model needs [32, 32]",
        ),
        (
            with_(**{WORDS: torch.zeros(1028, 32)}),
            f"{WORDS} has shape [1028, 32], the model needs [1026, 32]",
        ),
        (with_(**{WORDS: torch.zeros(())}), f"{WORDS} has shape [], the model needs [1026, 32]"),
        (with_(**{SEGMENTS: torch.zeros(())}), f"{SEGMENTS} has shape [], the model needs [2, 32]"),
        (with_(**{SEGMENTS: torch.zeros(0, 32)}), "has shape [0, 32], the model needs [2, 32]"),
        (with_(**{SEGMENTS: torch.zeros(3, 32)}), "has shape [3, 32], the model needs [2, 32]"),
        (
            with_(**{WORDS: torch.zeros(1026, 32, dtype=torch.int64)}),
            f"{WORDS} holds int64, the model needs floating point",
        ),
    ],
)
def test_every_tensor_of_an_official_checkpoint_is_accounted_for(change, message):
    with pytest.raises(CheckpointError, match=re.escape(message)):
        load_official(change(Official().state()), TINY)


@pytest.mark.parametrize(
    "key",
    [
        "image_tower.norm.weight",
        "text_tower.pooler.bias",
        "text_projection.weight",
        "text.transformer.pooler.bias",
        "text.transformer.embeddings.segment",
        "text.transformer.embeddings.LayerNorm.gamma",
        "module.logit_scale",
    ],
)
def test_a_key_that_the_authors_do_not_have_never_fills_a_tensor(key):
    state = with_(**{key: torch.full((32,), 7.0)})(Official().state())
    with pytest.raises(CheckpointError, match=f"has {key}, which this model has no place for"):
        load_official(state, TINY)


def test_messages_name_keys_as_the_file_has_them():
    state = {f"module.{key}": value for key, value in Official().state().items()}
    state[f"module.{WORDS}"] = torch.zeros(3, 32)
    with pytest.raises(CheckpointError, match=re.escape(f"module.{WORDS} has shape [3, 32]")):
        load_official(state, TINY)


class Malicious:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_runs_code_is_refused_and_runs_none(tmp_path, zipped):
    trap, path = tmp_path / "trap", tmp_path / "model.pt"
    content = {"state_dict": {"logit_scale": torch.zeros(())}, "epoch": Malicious(trap)}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match="nothing else is loaded"):
        read_official(path)
    assert not trap.exists()
    torch.load(path, weights_only=False)
    assert trap.exists()  # the trap does work


def test_a_malicious_bert_folder_is_refused(tmp_path):
    torch.save({"a": Malicious(tmp_path / "trap")}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="nothing else is loaded"):
        load_bert(plain_text_tower(), str(tmp_path))
    assert not (tmp_path / "trap").exists()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"hello, this is no checkpoint",
        b"PK\x03\x04 cut short",
        b"\x80\x02}q\x00X\x04\x00\x00\x00\xff\xfe\xfd\xfcq\x01",  # a text that is not UTF-8
        b"\x80\x02s.",  # takes from an empty stack
        b"\x80\x02X\x04",  # a length of which bytes are missing
    ],
)
def test_files_that_are_no_checkpoint_are_one_line_errors(tmp_path, content):
    path = tmp_path / "model.pt"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="is not a PyTorch file of plain tensors") as caught:
        read_official(path)
    assert "\n" not in str(caught.value)


def test_a_truncated_checkpoint_is_an_error(tmp_path):
    path = tmp_path / "model.pt"
    torch.save(Official().state(), path)
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(CheckpointError, match="is not a PyTorch file"):
        read_official(path)


def test_a_missing_checkpoint_and_a_folder_are_errors(tmp_path):
    with pytest.raises(CheckpointError, match=r"model\.pt does not exist"):
        read_official(tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match="is not a PyTorch file"):
        read_official(tmp_path)


@pytest.mark.parametrize(
    "content", [torch.zeros(2), [torch.zeros(2)], {"state_dict": {"epoch": 3}}, {7: torch.zeros(2)}]
)
def test_a_pytorch_file_without_a_state_dict_is_an_error(tmp_path, content):
    torch.save(content, tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match="holds no state dict of tensors"):
        read_official(tmp_path / "model.pt")


def test_the_presets_have_the_shapes_of_the_released_models():
    """Sizes of the authors' B/32 and B/16 checkpoints, less the row of BERT's segment 1."""
    for preset, num_values in (("vit-b-32", 197_528_833), ("vit-b-16", 195_872_257)):
        with torch.device("meta"):
            model = LoTLIP(PRESETS[preset])
        assert sum(p.numel() for p in model.parameters()) == num_values - 768, preset
