from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from lotlip.configuration import to_dict
from lotlip.errors import ConfigError
from lotlip.model import PRESETS, ModelConfig
from lotlip_platform.config import dump_config, flat, load_config, shipped_configs
from lotlip_platform.train_config import TrainConfig

MINIMAL = """
name: one
model: {preset: tiny}
data:
  train: /data
train: {num_samples: 256}
"""


@dataclass(frozen=True, kw_only=True)
class Inner:
    width: int = 1
    names: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Outer:
    rate: float = 0.5
    text: str = "default"
    mode: Literal["auto", "off"] = "auto"
    flag: bool = False
    inner: Inner = field(default_factory=Inner)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "config.yaml"


def load(file: Path, content: str, *overrides: str) -> TrainConfig:
    file.write_text(content)
    return load_config(TrainConfig, str(file), overrides)


def refused(file: Path, content: str, *overrides: str, cls: type = TrainConfig) -> str:
    file.write_text(content)
    with pytest.raises(ConfigError) as error:
        load_config(cls, str(file), overrides)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_arguments_beat_the_file_which_beats_the_preset_which_beats_defaults(file):
    content = MINIMAL.replace("{preset: tiny}", "{preset: tiny, text: {width: 64, num_heads: 4}}")
    config = load(file, content, "model.text.num_heads=8", "optim.lr=0.1")
    default, tiny, ours = ModelConfig(), PRESETS["tiny"], config.model
    assert ours.image == tiny.image != default.image
    assert (ours.text.width, ours.text.num_heads) == (64, 8)
    assert ours.text.num_layers == tiny.text.num_layers != default.text.num_layers
    assert (config.optim.lr, config.optim.beta1) == (0.1, 0.9)


def test_the_preset_itself_can_be_an_argument(file):
    assert load(file, MINIMAL, "model.preset=small").model == PRESETS["small"]


def test_without_a_preset_the_papers_model_is_taken(file):
    config = load(file, MINIMAL.replace("{preset: tiny}", "{text: {num_corner_tokens: 0}}"))
    assert config.model.preset == "vit-b-16"
    assert config.model.text.num_corner_tokens == 0


def test_an_unknown_preset_lists_those_there_are(file):
    message = refused(file, MINIMAL, "model.preset=huge")
    assert "model.preset='huge'" in message
    assert "tiny, scenes" in message


@pytest.mark.parametrize("preset", ["[a]", "{a: 1}", "null"])
def test_a_preset_that_is_no_name_is_refused(file, preset):
    assert "model.preset" in refused(file, MINIMAL.replace("tiny", preset))


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("optim.learning_rte=1", "unknown key optim.learning_rte"),
        ("train.global_batchs=8", "did you mean train.global_batch?"),
        ("modle.preset=tiny", "did you mean model?"),
        ("optim.lr=fast", "optim.lr must be a number, got 'fast'"),
        ("train.num_samples=1.5", "train.num_samples must be a whole number, got 1.5"),
        ("train.num_samples=true", "train.num_samples must be a whole number, got True"),
        ("augment.flip=1", "augment.flip must be true or false, got 1"),
        ("optim=3", "optim must be a group of keys, got 3"),
        ("model=3", "model must be a group of keys, got 3"),
        ("captions.captioners=a", "captions.captioners must be a list"),
        ("train.precision=fp8", "train.precision='fp8' must be one of auto, fp32, bf16"),
        ("optim.lr=-1", "optim.lr=-1.0 must be above 0"),
        ("optim.lr=.nan", "optim.lr=nan must be a finite number"),
        ("optim.lr=.inf", "optim.lr=inf must be a finite number"),
        ("train.long_weight=-.inf", "train.long_weight=-inf must be a finite number"),
        (f"optim.lr={10**400}", "optim.lr=inf must be a finite number"),
        ("name=a/b", "name='a/b'"),
        ("optim.lr", "'optim.lr' is not of the form key=value"),
        ("=3", "'=3' is not of the form key=value"),
    ],
)
def test_a_wrong_argument_is_told_with_its_key(file, override, expected):
    assert expected in refused(file, MINIMAL, override)


@pytest.mark.parametrize(
    "override",
    ["data.train=[", "name={", "name=${x", "data.train=a: b: c", "data=[1]", "name=[a]]"],
)
def test_an_argument_that_does_not_parse_is_blamed_and_not_the_file(file, override):
    message = refused(file, MINIMAL, "optim.lr=1", override)
    assert message.startswith(repr(override))
    assert str(file) not in message


@pytest.mark.parametrize("override", ["a..b=1", "[0]=1", "a[b=1"])
def test_an_argument_whose_key_does_not_parse_is_one_line(file, override):
    refused(file, MINIMAL, override)


@pytest.mark.parametrize("override", ["data.train=${oc.env:NO_SUCH_VARIABLE}", "name=${nothing}"])
def test_an_argument_that_refers_to_nothing_is_blamed_and_not_the_file(file, override):
    assert refused(file, MINIMAL, override).startswith(f"{override!r}: ")


def test_a_pretrained_text_tower_needs_its_own_vocabulary(file):
    message = refused(file, MINIMAL, "model.text.pretrained=/bert")
    assert "model.text.pretrained=/bert knows the word pieces of its own vocabulary" in message
    assert "tokenizer.pretrained" in message
    load(file, MINIMAL, "model.text.pretrained=/bert", "tokenizer.pretrained=/bert")


def test_a_missing_key_is_named(file):
    assert "data.train is missing" in refused(file, MINIMAL.replace("\n  train: /data", " {}"))
    assert "name is missing" in refused(file, MINIMAL.replace("name: one", ""))


def test_a_missing_file_lists_the_shipped_ones(tmp_path):
    with pytest.raises(ConfigError, match=r"no config .*nowhere.*; shipped ones: .*train/scenes"):
        load_config(TrainConfig, str(tmp_path / "nowhere.yaml"))


@pytest.mark.parametrize("content", ["a: [1\nb: 2\n", "name: one\n\tmodel: x\n", "a: 1\na: 2\n"])
def test_malformed_yaml_gives_its_line(file, content):
    assert f"{file}: line 2" in refused(file, content)


@pytest.mark.parametrize("content", ["", "- a\n- b\n", "just words\n"])
def test_a_file_without_keys_is_refused(file, content):
    refused(file, content)


def test_a_file_that_is_no_text_is_refused(file):
    file.write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(ConfigError) as error:
        load_config(TrainConfig, str(file))
    assert "\n" not in str(error.value)


def test_a_text_may_be_left_empty_in_file_and_argument(file):
    file.write_text("text:\n")
    assert load_config(Outer, str(file)).text == ""
    file.write_text("text: words\n")
    assert load_config(Outer, str(file), ["text="]).text == ""


def test_values_get_the_type_of_their_field(file):
    file.write_text("rate: 1\ntext: 2024\nflag: true\ninner: {names: [a, 7]}\n")
    config = load_config(Outer, str(file), ["inner.width=3"])
    inner = Inner(width=3, names=("a", "7"))
    assert config == Outer(rate=1.0, text="2024", flag=True, inner=inner)
    assert isinstance(config.rate, float)
    assert load_config(Outer, str(file), ["inner.names=[b,c]"]).inner.names == ("b", "c")


def test_a_value_may_hold_equal_signs(file):
    file.write_text("")
    assert load_config(Outer, str(file), ["text=a=b"]).text == "a=b"


def test_numbers_in_scientific_notation_are_numbers(file):
    file.write_text("rate: 1e-3\n")
    assert load_config(Outer, str(file)).rate == 1e-3
    assert load_config(Outer, str(file), ["rate=5e-4"]).rate == 5e-4


def test_environment_variables_are_read(file, monkeypatch):
    monkeypatch.setenv("SHARDS", "s3://bucket/shards")
    config = load(file, MINIMAL.replace("/data", "${oc.env:SHARDS}/train"))
    assert config.data.train == "s3://bucket/shards/train"


def test_a_missing_environment_variable_is_named(file):
    message = refused(file, MINIMAL.replace("/data", "${oc.env:NO_SUCH_VARIABLE}"))
    assert message.startswith(f"{file}: ")
    assert "NO_SUCH_VARIABLE" in message


def test_a_reference_to_nothing_is_one_line(file):
    assert "elsewhere" in refused(file, MINIMAL.replace("/data", "${elsewhere}"))


def test_a_dumped_config_loads_to_an_equal_one(file):
    config = load(file, MINIMAL, "captions.captioners=[a,b]", "data.train=/ü", "optim.lr=1e-5")
    file.write_text(dump_config(config))
    assert load_config(TrainConfig, str(file)) == config


def test_flat_names_every_value_by_its_dotted_key(file):
    values = flat(to_dict(load(file, MINIMAL, "captions.captioners=[a]")))
    assert values["model.text.num_corner_tokens"] == 2
    assert values["captions.captioners"] == ["a"]
    assert not any(isinstance(value, dict) for value in values.values())
    assert len(values) <= 100, "MLflow takes no more params at once"


def test_there_are_shipped_configs():
    assert "train/scenes" in shipped_configs()


@pytest.mark.parametrize("name", [n for n in shipped_configs() if n.startswith("train/")])
def test_every_shipped_training_config_loads(name):
    assert load_config(TrainConfig, name) == load_config(TrainConfig, f"{name}.yaml")
