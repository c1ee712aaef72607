"""What an examination of this machine found, a line for each thing looked at."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from lotlip.errors import LotlipError
from lotlip_platform.redaction import redacted

State = Literal["ok", "warning", "error"]
MARKS: dict[State, str] = {"ok": "✓", "warning": "!", "error": "✗"}


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    name: str
    state: State
    found: str
    advice: str = ""
    """What to do; empty where all is well or where `found` says it."""


def looked(name: str, look: Callable[[], Finding]) -> Finding:
    """What a look finds, or what kept it from that."""
    try:
        return look()
    except LotlipError as error:
        return Finding(name, "error", str(error))  # it says what to do
    except (ImportError, OSError) as error:
        return Finding(name, "error", str(error), "install the packages again")


def masked(finding: Finding) -> Finding:
    """The finding without the secrets of the environment and without users in URLs."""
    return replace(finding, found=redacted(finding.found), advice=redacted(finding.advice))


def render(findings: Sequence[Finding]) -> str:
    """A table of mark, name and what was found; advice stands on a line of its own."""
    width = max((len(finding.name) for finding in findings), default=0)
    lines = []
    for finding in findings:
        lines.append(f"{MARKS[finding.state]} {finding.name:<{width}}  {finding.found}")
        if finding.advice:
            lines.append(f"  {'':<{width}}  → {finding.advice}")
    return "\n".join(lines)
