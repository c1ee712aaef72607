"""infra/compose.yaml, without Docker: as Compose reads it, and its commands on this machine."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from compose_spec import PyCompose

INFRA = Path(__file__).parents[2] / "infra"
SECRETS = "/run/secrets"
_VARIABLE = re.compile(r"(?<!\$)\$\{(\w+):-([^}]*)\}")


def read_compose(name: str = "compose.yaml", **variables: str) -> dict[str, Any]:
    """A compose file, with its variables and their defaults put in. Raises: ValueError."""
    text = _VARIABLE.sub(lambda found: variables.get(found[1], found[2]), _text(name))
    # PyYAML also merges what is merged into what is merged, which the other reader does not.
    compose = PyCompose.from_yaml(yaml.safe_dump(yaml.safe_load(text)))
    compose.validate()
    return compose.to_dict()


def variables_of(name: str = "compose.yaml") -> dict[str, str]:
    """The variables that a compose file takes, with their defaults."""
    return dict(_VARIABLE.findall(_text(name)))


def _text(name: str) -> str:
    return (INFRA / name).read_text()


class ServiceHere:
    """A service's command and environment, with addresses and paths of this machine."""

    def __init__(self, name: str, secrets: Path, here: Mapping[str, str]) -> None:
        """`here`: what stands for a text of the compose file, such as an address."""
        compose = read_compose()
        self._service = compose["services"][name]
        files = {
            each["target"]: str(INFRA / compose["configs"][each["source"]]["file"])
            for each in self._service.get("configs", [])
        }
        self._here = {**files, SECRETS: str(secrets), **here}

    @property
    def command(self) -> list[str]:
        return [self.local(word) for word in self._service["command"]]

    def environment(self, **changes: str) -> dict[str, str]:
        """`changes`: variables that say where it is."""
        told = self._service.get("environment", {})
        unknown = changes.keys() - told.keys() - {"HOME", "SECRETS"}
        assert not unknown, f"the compose file sets no {unknown}"
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        own = {name: self.local(str(text)) for name, text in told.items()}
        return {"PATH": path, **own, **changes}

    def local(self, text: str) -> str:
        """A command of the compose file or the runbook, for this machine."""
        for there, here in self._here.items():
            text = text.replace(there, here)
        return text.replace("$$", "$")
