"""The verb `sweep`."""

from __future__ import annotations

import argparse
import json
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
        help="e.g. seeds=[0,1,2]; behind report a sweep's config, name or address",
    )
    sweep.add_argument("--json", action="store_true", help="print all results as JSON")
    sweep.set_defaults(run=_sweep)


def _sweep(arguments: argparse.Namespace) -> None:
    from lotlip_platform.config import load_config
    from lotlip_platform.sweep_config import SweepConfig

    if arguments.config == "report":
        _report(arguments.overrides)
        return
    # A mistake in it is told before what takes long is imported.
    config = load_config(SweepConfig, arguments.config, arguments.overrides)
    from lotlip_platform.progress import SweepDisplay
    from lotlip_platform.sweep import sweep
    from lotlip_platform.sweep_ledger import table

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
    if result.overhead_s is not None:
        warm = f"{result.between_s:.2f} s on warm workers, " if result.between_s else ""
        print(f"beyond its training a trial took {warm}{result.overhead_s:.1f} s in all")
    if result.run_id:
        print(f"MLflow run {result.run_id} at {result.tracking_uri}")


def _report(arguments: list[str]) -> None:
    from lotlip.errors import ConfigError
    from lotlip_platform.sweep import find_sweep, report

    if not arguments:
        raise ConfigError("give a sweep's config, name or address: lotlip sweep report sweep/arms")
    name, *overrides = arguments
    print(report(find_sweep(name, overrides)))
