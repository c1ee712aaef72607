import dataclasses
import json
import math
import re
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from lotlip.configuration import from_dict, to_dict, unknown_key
from lotlip.errors import ConfigError
from lotlip.model import PRESETS, ModelConfig


@dataclass(frozen=True, kw_only=True)
class Data:
    train: str
    num_workers: int = 2
    sources: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Job:
    data: Data
    name: str = "run"
    lr: float = 1e-3
    shuffle: bool = True
    precision: Literal["auto", "fp32"] = "auto"
    limit: int | None = None
    betas: tuple[float, ...] = (0.9, 0.98)
    stages: tuple[Data, ...] = ()
    extra: Any = None
    model: ModelConfig = field(default_factory=ModelConfig)

    def __post_init__(self) -> None:
        if self.lr <= 0:
            raise ConfigError(f"lr={self.lr} must be above 0")


FULL = Job(
    data=Data(train="s3://bucket/shards", sources=("a", "b")),
    name="sweep",
    shuffle=False,
    precision="fp32",
    limit=7,
    betas=(0.8,),
    stages=(Data(train="x"), Data(train="y", num_workers=4)),
    extra={"any": ["thing"]},
    model=PRESETS["scenes"],
)


@pytest.mark.parametrize("config", [FULL, Job(data=Data(train="x")), *PRESETS.values()])
def test_a_config_survives_json(config):
    plain = json.loads(json.dumps(to_dict(config)))
    assert from_dict(type(config), plain) == config


def test_defaults_fill_what_is_not_given():
    job = from_dict(Job, {"data": {"train": "x"}, "model": {"text": {"num_corner_tokens": 4}}})
    text = dataclasses.replace(ModelConfig().text, num_corner_tokens=4)
    expected = Job(data=Data(train="x"), model=dataclasses.replace(ModelConfig(), text=text))
    assert job == expected


@pytest.mark.parametrize(
    "given,got",
    [
        ({"lr": 1}, ("lr", 1.0)),
        ({"name": 2024}, ("name", "2024")),
        ({"name": None}, ("name", "")),
        ({"limit": None}, ("limit", None)),
        ({"limit": 3}, ("limit", 3)),
        ({"betas": [1, 0.5]}, ("betas", (1.0, 0.5))),
        ({"betas": []}, ("betas", ())),
        ({"extra": [1, "a"]}, ("extra", [1, "a"])),
    ],
)
def test_values_take_the_type_of_their_field(given, got):
    name, expected = got
    value = getattr(from_dict(Job, {"data": {"train": "x"}} | given), name)
    assert value == expected
    assert type(value) is type(expected)
    assert not isinstance(value, tuple) or all(type(item) is float for item in value)


@pytest.mark.parametrize(
    "given,message",
    [
        ({"nmae": "x"}, "unknown key nmae; did you mean name?"),
        ({"data": {"train": "x", "num_worker": 1}}, "did you mean data.num_workers?"),
        ({"model": {"txt": {}}}, "unknown key model.txt; did you mean model.text?"),
        (
            {"data": {"train": "x", "zzz": 1}},
            "unknown key data.zzz; known: train, num_workers, sources",
        ),
        ({7: 1}, "unknown key 7; known: data, name"),
        ({"data": {"train": "x", "num_workers": True}}, "data.num_workers must be a whole number"),
        ({"data": {"train": "x", "num_workers": 2.0}}, "must be a whole number, got 2.0"),
        ({"data": {"train": "x", "num_workers": "2"}}, "must be a whole number, got '2'"),
        ({"data": {"train": "x", "num_workers": None}}, "must be a whole number, got None"),
        ({"lr": "0.1"}, "lr must be a number, got '0.1'"),
        ({"lr": True}, "lr must be a number, got True"),
        ({"lr": [0.1]}, "lr must be a number, got [0.1]"),
        ({"lr": math.inf}, "lr=inf must be a finite number"),
        ({"lr": math.nan}, "lr=nan must be a finite number"),
        ({"lr": 10**400}, "lr=inf must be a finite number"),
        ({"betas": [0.9, -math.inf]}, "betas[1]=-inf must be a finite number"),
        ({"shuffle": 1}, "shuffle must be true or false, got 1"),
        ({"shuffle": "yes"}, "shuffle must be true or false, got 'yes'"),
        ({"name": True}, "name must be a text, got True"),
        ({"name": ["a"]}, "name must be a text, got ['a']"),
        ({"precision": "fp16"}, "precision='fp16' must be one of auto, fp32"),
        ({"precision": ["auto"]}, "precision=['auto'] must be one of auto, fp32"),
        ({"limit": "3"}, "limit must be a whole number, got '3'"),
        ({"limit": False}, "limit must be a whole number, got False"),
        ({"betas": 0.9}, "betas must be a list such as [a, b], got 0.9"),
        ({"betas": "0.9"}, "betas must be a list such as [a, b], got '0.9'"),
        ({"betas": {"a": 1}}, "betas must be a list such as [a, b]"),
        ({"betas": [0.9, "x"]}, "betas[1] must be a number, got 'x'"),
        ({"stages": [{"train": "x"}, {"train": 1, "sources": [[]]}]}, "stages[1].sources[0]"),
        ({"stages": [{}]}, "stages[0].train is missing"),
        ({"data": "shards"}, "data must be a group of keys, got 'shards'"),
        ({"data": None}, "data must be a group of keys, got None"),
        ({"data": {}}, "data.train is missing: set it in the file or as key=value"),
        ({"lr": -1.0}, "lr=-1.0 must be above 0"),
        ({"model": {"image": {"num_heads": 5}}}, "model.image.num_heads=5 must divide"),
    ],
)
def test_wrong_values_are_errors_that_name_the_dotted_key(given, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        from_dict(Job, {"data": {"train": "x"}} | given)


def test_a_missing_group_is_an_error():
    with pytest.raises(ConfigError, match=r"^data is missing"):
        from_dict(Job, {"name": "x"})


@pytest.mark.parametrize("values", [None, [], ["name"], "name", 3])
def test_a_config_that_is_no_group_of_keys_is_an_error(values):
    with pytest.raises(ConfigError, match="the config must be a group of keys"):
        from_dict(Job, values)
    with pytest.raises(ConfigError, match=r"^train\.data must be a group of keys"):
        from_dict(Data, values, "train.data")


def test_the_path_stands_before_every_key():
    with pytest.raises(ConfigError, match=r"^unknown key train\.data\.num_worker; did you mean tr"):
        from_dict(Data, {"train": "x", "num_worker": 1}, "train.data")
    with pytest.raises(ConfigError, match=r"^train\.data\.train is missing"):
        from_dict(Data, {}, "train.data")
    assert unknown_key("a.b", "stp", ["step"]) == "unknown key a.b.stp; did you mean a.b.step?"
