"""Exports in others' layouts, read again by us and by transformers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
from transformers import BertModel, ViTModel

import lotlip
from lotlip.errors import CheckpointError
from lotlip.evaluate.embed import embed_texts
from lotlip.export import convert_official
from lotlip.foreign_export import hf_files, official_file
from lotlip.model import PRESETS, LoTLIP, ModelConfig
from lotlip.tokenizer import Tokenizer

TEXTS = ["A red castle. Two birds are above it.", "", "A dog sits. " * 40]
TINY = PRESETS["tiny"]


def made(config: ModelConfig) -> LoTLIP:
    """A model with random weights everywhere, norms and biases included."""
    text = config.text
    tokenizer = Tokenizer.learn(
        TEXTS * 20,
        vocab_size=text.vocab_size,
        num_corner_tokens=text.num_corner_tokens,
        context_length=text.context_length,
    )
    torch.manual_seed(0)
    model = LoTLIP(config, tokenizer).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model


def written(files: dict[str, bytes], folder: Path) -> Path:
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def features(model: LoTLIP) -> tuple[torch.Tensor, torch.Tensor]:
    size = model.config.image.image_size_px
    images = torch.rand(3, 3, size, size, generator=torch.Generator().manual_seed(1)) * 2 - 1
    with torch.no_grad():
        return model.encode_image(images), embed_texts(model, TEXTS)


CONFIGS = {
    "tiny": TINY,
    "no corner tokens": replace(TINY, text=replace(TINY.text, num_corner_tokens=0)),
    "other tower": replace(
        PRESETS["scenes"], image=replace(PRESETS["scenes"].image, pretrained="")
    ),
    "sigmoid, no mask": replace(TINY, loss="sigmoid", text=replace(TINY.text, corner_mask=False)),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_folder_in_the_style_of_hugging_face_is_the_same_model(name: str, tmp_path: Path) -> None:
    model = made(CONFIGS[name])
    folder = written(hf_files(model, "A card."), tmp_path / "hf")
    again = lotlip.load(folder)
    assert again.config == model.config
    for ours, theirs in zip(features(again), features(model), strict=True):
        torch.testing.assert_close(ours, theirs, atol=0, rtol=0)
    assert (folder / "README.md").read_text().startswith("---\nlibrary_name: lotlip\n")
    assert (folder / "README.md").read_text().endswith("A card.\n")


def test_transformers_computes_the_same_from_the_towers(tmp_path: Path) -> None:
    model = made(CONFIGS["no corner tokens"])
    folder = written(hf_files(model), tmp_path / "hf")
    config = json.loads((folder / "config.json").read_text())
    state = safetensors.torch.load_file(folder / "model.safetensors")

    def tower(name: str) -> Path:
        """As transformers finds it: its tensors in a folder of their own."""
        prefix = f"{name}_model."
        own = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        files = {
            "model.safetensors": safetensors.torch.save(own, {"format": "pt"}),
            "config.json": json.dumps(config[f"{name}_config"]).encode(),
        }
        return written(files, tmp_path / name)

    bert = BertModel.from_pretrained(tower("text")).eval()
    assert model.tokenizer is not None
    ids = torch.from_numpy(model.tokenizer(TEXTS))
    with torch.no_grad():
        pooled = bert(ids, attention_mask=(ids != 0).long()).pooler_output
        found = torch.nn.functional.normalize(pooled @ state["text_projection.weight"].T)
        torch.testing.assert_close(found, model.encode_text(ids), atol=1e-6, rtol=1e-5)

    vit = ViTModel.from_pretrained(tower("vision"), add_pooling_layer=False).eval()
    size = model.config.image.image_size_px
    images = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(1)) * 2 - 1
    with torch.no_grad():
        token = vit(images).last_hidden_state[:, 0]
        torch.testing.assert_close(
            torch.nn.functional.normalize(token), model.encode_image(images), atol=1e-6, rtol=1e-5
        )


def test_the_authors_file_is_read_again(tmp_path: Path) -> None:
    learnt = made(TINY).tokenizer
    assert learnt is not None
    num_pieces = learnt.to_files()["vocab.txt"].count(b"\n")  # as many as BERT's table has rows
    config = replace(TINY, text=replace(TINY.text, vocab_size=num_pieces))
    model = made(config)
    assert model.tokenizer is not None
    (tmp_path / "model.pt").write_bytes(official_file(model))
    model.tokenizer.save(tmp_path / "bert")
    again = convert_official(
        tmp_path / "model.pt", tmp_path / "again", bert=tmp_path / "bert", model_config=config
    )
    for ours, theirs in zip(features(again), features(model), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)
    state = torch.load(tmp_path / "model.pt", weights_only=True)
    table = state["text.transformer.embeddings.word_embeddings.weight"]
    assert len(table) == num_pieces + config.text.num_corner_tokens
    assert {"visual.trunk.cls_token", "text.proj.weight", "logit_scale"} <= state.keys()


@pytest.mark.parametrize(
    ("name", "message"),
    [("other tower", r"no image tower with model\.image\.stem=conv"), ("sigmoid, no mask", "mask")],
)
def test_what_the_authors_cannot_compute_is_refused(name: str, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        official_file(made(CONFIGS[name]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("text_projection.weight"), r"lacks text_projection\.weight"),
        (lambda s: s.update({"nonsense": torch.ones(1)}), "has nonsense, which this model"),
        (
            lambda s: s.update({"visual_projection.weight": torch.ones(32, 32)}),
            r"has visual_projection\.weight, which this model has no place for",
        ),
    ],
)
def test_every_tensor_of_such_a_folder_is_accounted_for(change, message, tmp_path: Path) -> None:
    folder = written(hf_files(made(TINY)), tmp_path / "hf")
    state = safetensors.torch.load_file(folder / "model.safetensors")
    change(state)
    safetensors.torch.save_file(state, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=message):
        lotlip.load(folder)
