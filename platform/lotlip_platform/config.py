"""From YAML files and `key=value` arguments to frozen config dataclasses.

The order is: defaults, preset of the model, file, arguments. Environment variables are read as
`${oc.env:NAME}`. Nothing changes a config once it is built.

The dataclasses are built by `lotlip.configuration` rather than by OmegaConf's structured configs:
its errors name the key in one line and propose the nearest known one.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lotlip.configuration import from_dict, to_dict
from lotlip.errors import ConfigError
from lotlip.model import PRESETS, ModelConfig
from lotlip_platform.redaction import secret_in

T = TypeVar("T")
_MALFORMED = (OmegaConfBaseException, yaml.YAMLError, ValueError)


def load_config(cls: type[T], file: str, overrides: Sequence[str] = ()) -> T:
    """The config of a file with the arguments on top.

    `file` is a path, or the name of a shipped config such as `train/scenes`.
    Raises: ConfigError.
    """
    return build_config(cls, load_values(file, overrides))


def load_values(file: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The plain values of a config, before they are checked. Raises: ConfigError."""
    return _merged(find_config(file), overrides)


def values_of(arguments: Sequence[str]) -> dict[str, Any]:
    """The plain values of `key=value` arguments alone. Raises: ConfigError."""
    merged = OmegaConf.create({})
    for argument in arguments:
        merged = _overridden(merged, argument)
    values = OmegaConf.to_container(merged)
    assert isinstance(values, dict), "what a group of keys is"
    return {str(key): value for key, value in values.items()}


def build_config(cls: type[T], values: dict[str, Any]) -> T:
    """The config of plain values, the model's preset filled in. Raises: ConfigError."""
    if isinstance(values.get("model"), dict):
        values = {**values, "model": _with_preset(values["model"])}
    return from_dict(cls, values)


def with_values(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Nested values with others on top, which may have dotted keys, as arguments have."""
    merged = dict(below)
    for key, value in above.items():
        first, _, rest = key.partition(".")
        if rest:
            value = {rest: value}
        if isinstance(value, Mapping):
            inner = merged.get(first)
            value = with_values(inner if isinstance(inner, Mapping) else {}, value)
        merged[first] = value
    return merged


def dump_config(config: Any) -> str:
    """The resolved config as YAML; loading it again gives an equal config."""
    return dump_values(to_dict(config))


def dump_values(values: Mapping[str, Any]) -> str:
    """Plain values as YAML."""
    return yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True)


def flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """Nested values by dotted keys: `model.text.num_corner_tokens`."""
    return dict(_flat(values, ""))


def find_config(file: str) -> Path:
    """Raises: ConfigError that lists the shipped configs."""
    path = Path(file).expanduser()
    if path.is_file():
        return path
    for folder in _shipped_folders():
        shipped = folder / f"{file.removesuffix('.yaml')}.yaml"
        if shipped.is_file():
            return shipped
    raise ConfigError(f"there is no config {file}; shipped ones: {', '.join(shipped_configs())}")


def shipped_configs() -> list[str]:
    """Names that `find_config` takes without a path."""
    found = {
        path.relative_to(folder).with_suffix("").as_posix()
        for folder in _shipped_folders()
        for path in folder.rglob("*.yaml")
    }
    return sorted(found)


@functools.cache
def _shipped_folders() -> list[Path]:
    """The wheel carries jobs/configs; a checkout has it beside the package."""
    package = Path(str(resources.files("lotlip_platform")))
    folders = [package / "configs", package.parents[1] / "jobs" / "configs"]
    return [folder for folder in folders if folder.is_dir()]


def _merged(path: Path, overrides: Sequence[str]) -> dict[str, Any]:
    try:
        merged = OmegaConf.load(path)
    except (*_MALFORMED, OSError) as error:
        raise ConfigError(f"{path}: {_one_line(error)}") from error
    if not OmegaConf.is_dict(merged):
        raise ConfigError(f"{path} holds no keys: it should be a YAML file of key: value")
    for override in overrides:
        merged = _overridden(merged, override)
    try:
        values = OmegaConf.to_container(merged, resolve=True)
    except _MALFORMED as error:
        key = getattr(error, "full_key", None)
        sources = [f"{text!r}" for text in overrides if text.partition("=")[0] == key]
        raise ConfigError(f"{[str(path), *sources][-1]}: {_one_line(error)}") from error
    assert isinstance(values, dict), "what a group of keys resolves to"
    values = {str(key): value for key, value in values.items()}
    for key, value in flat(values).items():
        if kind := secret_in(str(value)):
            raise ConfigError(
                f"{key} holds {kind}, and configs are recorded: leave it to the environment"
            )
    return values


def _overridden(config: Any, override: str) -> Any:
    if "=" not in override or override.startswith("="):
        raise ConfigError(f"{override!r} is not of the form key=value")
    try:
        return OmegaConf.merge(config, OmegaConf.from_dotlist([override]))
    except yaml.MarkedYAMLError as error:
        # Its line would be one of the argument, which has only one.
        raise ConfigError(f"{override!r} is not a YAML value: {error.problem}") from error
    except (*_MALFORMED, TypeError) as error:
        raise ConfigError(f"{override!r}: {_one_line(error)}") from error


def _with_preset(model: dict[str, Any]) -> dict[str, Any]:
    name = model.get("preset", ModelConfig.preset)
    if not isinstance(name, str) or name not in PRESETS:
        raise ConfigError(f"model.preset={name!r} must be one of {', '.join(PRESETS)}")
    return with_values(to_dict(PRESETS[name]), model)


def _flat(values: Mapping[str, Any], path: str) -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", value


def _one_line(error: Exception) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
        return f"line {error.problem_mark.line + 1}: {error.problem}"
    return " ".join(str(error).split())
