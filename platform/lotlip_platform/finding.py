"""What an examination of this machine found, a line for each thing looked at."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

State = Literal["ok", "warning", "error"]
MARKS: dict[State, str] = {"ok": "✓", "warning": "!", "error": "✗"}
_SECRETS = re.compile(r"SECRET|PASSWORD|TOKEN|API_KEY")
_USER_IN_URL = re.compile(r"://[^/\s@]+@")
_SHORTEST_SECRET = 8  # shorter ones, as of local services, are words that texts may hold


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    name: str
    state: State
    found: str
    advice: str = ""
    """What to do; empty where all is well or where `found` says it."""


def masked(finding: Finding) -> Finding:
    """The finding without the secrets of the environment and without users in URLs."""
    return replace(finding, found=_masked(finding.found), advice=_masked(finding.advice))


def render(findings: Sequence[Finding]) -> str:
    """A table of mark, name and what was found; advice stands on a line of its own."""
    width = max((len(finding.name) for finding in findings), default=0)
    lines = []
    for finding in findings:
        lines.append(f"{MARKS[finding.state]} {finding.name:<{width}}  {finding.found}")
        if finding.advice:
            lines.append(f"  {'':<{width}}  → {finding.advice}")
    return "\n".join(lines)


def _masked(text: str) -> str:
    text = _USER_IN_URL.sub("://***@", text)
    for name, value in os.environ.items():
        if _SECRETS.search(name) and len(value) >= _SHORTEST_SECRET:
            text = text.replace(value, "***")
    return text
