"""What a gate found, check by check, as tables and as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Literal

from lotlip.configuration import to_dict
from lotlip_platform.gate_config import GateConfig
from lotlip_platform.tables import aligned, markdown

Verdict = Literal["passed", "refused", "undecided"]

_WIDEST = 48
"""Characters of a cell."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """One row of the gate's report."""

    name: str
    demand: str
    candidate: str
    champion: str = ""
    difference: str = ""
    interval: str = ""
    verdict: Verdict
    """`undecided` is of a comparison whose interval is too wide to tell: it doesn't pass either."""
    shares: Mapping[str, float] = field(default_factory=dict)
    """Of a metric: `candidate`, and with a champion `champion` and `difference`."""


@dataclass(frozen=True, kw_only=True)
class GateReport:
    """What a gate found."""

    model: str
    candidate: int
    champion: int
    """0 if there was none to compare with."""
    config: GateConfig
    checks: tuple[Check, ...]

    @property
    def is_passed(self) -> bool:
        return not self.refusals

    @property
    def refusals(self) -> list[str]:
        """The checks that were not passed."""
        refused = [check for check in self.checks if check.verdict != "passed"]
        return list(dict.fromkeys(check.name for check in refused))

    def rows(self) -> list[list[str]]:
        """The table, its head first."""
        beside = f"champion v{self.champion}" if self.champion else "no champion yet"
        head = ["", f"candidate v{self.candidate}", beside, "difference", "interval", "demand"]
        return [
            [*head, "verdict"],
            *(
                [
                    check.name,
                    check.candidate,
                    check.champion,
                    check.difference,
                    check.interval,
                    check.demand,
                    check.verdict if check.verdict == "passed" else check.verdict.upper(),
                ]
                for check in self.checks
            ),
        ]

    def table(self) -> str:
        """For a terminal; what is too long for a cell stands below."""
        rows, below = self.rows(), []
        for row in rows[1:]:
            if len(row[1]) > _WIDEST:
                below.append(f"{row[0]}: {row[1]}")
                row[1] = "see below"
        return "\n".join([aligned(rows), *below])

    def markdown(self) -> str:
        """For MLflow's pages."""
        return markdown(self.rows())

    def to_json(self) -> str:
        return json.dumps(
            {
                "model": self.model,
                "candidate": self.candidate,
                "champion": self.champion,
                "is_passed": self.is_passed,
                "config": to_dict(self.config),
                "checks": [asdict(check) for check in self.checks],
            },
            indent=1,
        )
