"""The verb `sweep`."""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import asdict
from typing import Any


def add_verbs(verbs: Any) -> None:
    sweep = verbs.add_parser(
        "sweep", help="train what differs in few keys, and compare; the same command resumes"
    )
    sweep.add_argument(
        "config", help="a YAML file, or a shipped config such as sweep/scenes; or the word report"
    )
    sweep.add_argument(
        "overrides",
        nargs="*",
        default=[],
        metavar="key=value",
        help="e.g. seeds=[0,1,2]; behind report the name or address of a sweep",
    )
    sweep.add_argument("--json", action="store_true", help="print all results as JSON")
    sweep.set_defaults(run=_sweep)


def _sweep(arguments: argparse.Namespace) -> None:
    from lotlip_platform.config import load_config
    from lotlip_platform.progress import SweepDisplay
    from lotlip_platform.sweep import sweep
    from lotlip_platform.sweep_config import SweepConfig
    from lotlip_platform.sweep_ledger import table

    if arguments.config == "report":
        _report(arguments.overrides)
        return
    config = load_config(SweepConfig, arguments.config, arguments.overrides)
    display = SweepDisplay(config.name)
    try:
        result = sweep(config, display)
    finally:
        display.close()
    if arguments.json:
        print(json.dumps(asdict(result), indent=1))
        return
    print("\n".join(table(result.records, config.metric, config.mode)))
    print(f"\n{result.folder}/report/report.html")
    warm = "" if math.isnan(result.between_s) else f"{result.between_s:.2f} s on warm workers, "
    print(f"a trial took {warm}{result.overhead_s:.1f} s with starting them beyond its training")
    if result.run_id:
        print(f"MLflow run {result.run_id} at {result.tracking_uri}")


def _report(names: list[str]) -> None:
    from lotlip.errors import ConfigError
    from lotlip_platform.local_services import home
    from lotlip_platform.storage import open_store
    from lotlip_platform.sweep import report

    if len(names) != 1:
        raise ConfigError("give the name or the address of one sweep: lotlip sweep report NAME")
    (name,) = names
    print(report(open_store(name if "/" in name else f"{home()}/sweeps/{name}")))
