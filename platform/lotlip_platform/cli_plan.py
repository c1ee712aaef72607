"""The verb `plan`."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lotlip_platform.cli_model import add_config, train_config


def add_verbs(verbs: Any) -> None:
    plan = verbs.add_parser(
        "plan", help="hours, cost and bandwidth of a run, or a relabelling, on larger clusters"
    )
    add_config(plan)
    plan.add_argument(
        "--cluster",
        nargs="+",
        default=[],
        metavar=("CONFIG", "key=value"),
        help="the machines, e.g. plan/h100 price_per_gpu_hour=2.5 num_gpus=[8,64]; "
        "of a relabelling plan/captions-h100",
    )
    plan.add_argument("--out", type=Path, default=Path("plan.png"), metavar="PNG")
    plan.add_argument("--json", action="store_true")
    plan.set_defaults(run=_plan)


def _plan(arguments: argparse.Namespace) -> None:
    from lotlip_platform.config import load_values

    if "captioner" in load_values(arguments.config, arguments.overrides):
        _plan_relabel(arguments)
    else:
        _plan_training(arguments)


def _plan_training(arguments: argparse.Namespace) -> None:
    config = train_config(arguments)
    from lotlip_platform.config import load_config
    from lotlip_platform.plan_config import PlanConfig

    name, *overrides = arguments.cluster or ["plan/h100"]
    cluster = load_config(PlanConfig, name, overrides)
    from lotlip_platform.cli_data import write_out
    from lotlip_platform.plan import plan
    from lotlip_platform.plan_view import figure, table

    load, estimates = plan(config, cluster)
    if arguments.json:
        print(json.dumps({**asdict(load), "sizes": [asdict(e) for e in estimates]}, indent=1))
    else:
        print(table(load, estimates, cluster))
    if any(not estimate.problem for estimate in estimates):
        write_out(arguments.out, figure(estimates, f"{config.name}, on {cluster.gpu or 'GPUs'}"))


def _plan_relabel(arguments: argparse.Namespace) -> None:
    from lotlip_platform.config import load_config
    from lotlip_platform.relabel_config import RelabelConfig
    from lotlip_platform.relabel_plan import CaptionPlanConfig, plan_relabel, table

    config = load_config(RelabelConfig, arguments.config, arguments.overrides)
    name, *overrides = arguments.cluster or ["plan/captions-h100"]
    load, estimates = plan_relabel(config, load_config(CaptionPlanConfig, name, overrides))
    if arguments.json:
        print(json.dumps({**asdict(load), "sizes": [asdict(e) for e in estimates]}, indent=1))
    else:
        print(table(load, estimates))
