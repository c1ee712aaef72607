"""The verb `models`: registered models, from the candidate to the champion and back."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lotlip.errors import ConfigError
from lotlip_platform.cli_model import MODEL_HELP, benches_of

if TYPE_CHECKING:
    from lotlip_platform.gate_report import GateReport

_BECAUSE = "the reason, kept for ever"


def add_verbs(verbs: Any) -> None:
    models = verbs.add_parser("models", help="registered models: list, show, promote, roll back")
    of_models = models.add_subparsers(required=True, metavar="VERB", title="verbs")

    listed = of_models.add_parser("list", help="all registered models and who has which alias")
    listed.add_argument("--json", action="store_true")
    listed.set_defaults(run=_list)

    show = of_models.add_parser("show", help="where a version comes from, and how it did")
    show.add_argument("model", metavar="NAME@ALIAS", help="or NAME/VERSION, models:/ before or not")
    show.add_argument(
        "--reproduce", action="store_true", help="print the commands that make the same model again"
    )
    show.add_argument("--config", action="store_true", help="print its run's resolved config")
    show.add_argument("--json", action="store_true")
    show.set_defaults(run=_show)

    compare = of_models.add_parser("compare", help="two models on the same items")
    compare.add_argument("first", metavar="A", help=MODEL_HELP)
    compare.add_argument("second", metavar="B")
    compare.add_argument("--bench", action="append", required=True, metavar="NAME=URI")
    compare.add_argument("--samples", type=int, default=0, help="the first so many; default all")
    compare.add_argument("--out", type=Path, default=Path("compare.html"), metavar="HTML")
    compare.add_argument("--json", action="store_true")
    compare.set_defaults(run=_compare)

    history = of_models.add_parser("history", help="who moved which alias, when and why")
    history.add_argument("name", metavar="NAME")
    history.add_argument("--json", action="store_true")
    history.set_defaults(run=_history)

    _add_changes(of_models)


def _add_changes(of_models: Any) -> None:
    """The verbs that write something."""
    export = of_models.add_parser("export", help="write a model into a folder, in one of 3 layouts")
    export.add_argument("model", help=MODEL_HELP)
    export.add_argument("destination", metavar="DEST", help="a new folder, or s3://BUCKET/PREFIX")
    export.add_argument(
        "--layout",
        choices=("lotlip", "hf", "official"),
        default="lotlip",
        help="lotlip (default); hf: as on the Hugging Face hub; official: the authors' model.pt",
    )
    export.set_defaults(run=_export)

    register = of_models.add_parser("register", help="register the model of a run, or of a trial")
    register.add_argument("run_id", metavar="RUN", help="the id of a finished MLflow run of lotlip")
    register.add_argument("name", metavar="NAME", help="the registered model")
    register.set_defaults(run=_register)

    promote = of_models.add_parser("promote", help="give a version an alias, behind the gate")
    promote.add_argument("name", metavar="NAME")
    promote.add_argument("--version", type=int, required=True, metavar="V")
    promote.add_argument("--to", default="champion", metavar="ALIAS", help="default: champion")
    promote.add_argument("--because", required=True, metavar="REASON", help=_BECAUSE)
    promote.add_argument(
        "--gate",
        nargs="+",
        default=["promote/default"],
        metavar=("CONFIG", "key=value"),
        help="default: promote/default; behind it key=value, e.g. tolerance=0.02",
    )
    promote.add_argument(
        "--force", action="store_true", help="overrule a gate that refuses; marked for ever"
    )
    promote.add_argument("--json", action="store_true")
    promote.set_defaults(run=_promote)

    rollback = of_models.add_parser("rollback", help="back to the version that had an alias before")
    rollback.add_argument("name", metavar="NAME")
    rollback.add_argument("--alias", default="champion")
    rollback.add_argument("--because", required=True, metavar="REASON", help=_BECAUSE)
    rollback.set_defaults(run=_rollback)


def _list(arguments: argparse.Namespace) -> None:
    from lotlip_platform.registry import registered_models
    from lotlip_platform.tables import aligned

    models = registered_models()
    if arguments.json:
        print(json.dumps([asdict(model) for model in models], indent=1))
        return
    if not models:
        print("no model is registered: lotlip train does so, and lotlip models register")
        return
    rows = [
        [model.name, str(model.num_versions), ", ".join(_aliases(model.aliases))]
        for model in models
    ]
    print(aligned([["model", "versions", "aliases"], *rows]))


def _aliases(aliases: dict[str, int]) -> list[str]:
    return [f"{alias}: v{version}" for alias, version in sorted(aliases.items())]


def _show(arguments: argparse.Namespace) -> None:
    from lotlip_platform.model_lineage import lineage, reproduction

    found = lineage(arguments.model)
    if arguments.config:
        print(found.config, end="")
    elif arguments.reproduce:
        print(reproduction(found))
    elif arguments.json:
        print(json.dumps(found.to_json(), indent=1))
    else:
        print(found.text())


def _compare(arguments: argparse.Namespace) -> None:
    from lotlip_platform.cli_data import write_out
    from lotlip_platform.model_comparison import compare, comparison_page
    from lotlip_platform.progress import say

    if arguments.samples < 0:
        raise ConfigError("--samples must be 0 or more")
    found = compare(
        arguments.first,
        arguments.second,
        benches_of(arguments.bench),
        num_samples=arguments.samples,
        note=say,
    )
    if arguments.json:
        print(json.dumps([comparison.to_json() for comparison in found], indent=1))
    else:
        for comparison in found:
            print(f"{comparison.benchmark}, {comparison.num_samples} samples, 95% intervals")
            print(comparison.table())
    write_out(arguments.out, comparison_page(found).encode(), "page")


def _export(arguments: argparse.Namespace) -> None:
    from lotlip_platform.model_export import export

    names = export(arguments.model, arguments.destination, arguments.layout)
    print(f"{arguments.destination}: {', '.join(names)}")


def _register(arguments: argparse.Namespace) -> None:
    from lotlip_platform.model_lineage import register_run

    number = register_run(arguments.run_id, arguments.name)
    print(f"models:/{arguments.name}/{number}, alias candidate")


def _promote(arguments: argparse.Namespace) -> None:
    from lotlip_platform.config import load_config
    from lotlip_platform.gate_config import GateConfig

    if arguments.version < 1:
        raise ConfigError("--version must be 1 or more")
    config = load_config(GateConfig, arguments.gate[0], arguments.gate[1:])
    from lotlip_platform.progress import say
    from lotlip_platform.promotion import promote

    def show(report: GateReport) -> None:
        print(report.to_json() if arguments.json else report.table())

    change = promote(
        arguments.name,
        arguments.version,
        alias=arguments.to,
        because=arguments.because,
        config=config,
        is_forced=arguments.force,
        note=say,
        on_report=show,
    )
    how = "; the gate refused, and was overruled" if change.is_forced else ""
    say(f"{arguments.name}@{change.alias}: version {change.after} (was {_was(change.before)}){how}")


def _rollback(arguments: argparse.Namespace) -> None:
    from lotlip_platform.progress import say
    from lotlip_platform.promotion import rollback

    change = rollback(arguments.name, alias=arguments.alias, because=arguments.because, note=say)
    print(f"{arguments.name}@{change.alias}: version {change.after} (was {_was(change.before)})")


def _was(version: int) -> str:
    return str(version) if version else "none"


def _history(arguments: argparse.Namespace) -> None:
    from lotlip_platform.history_table import history_rows, strays
    from lotlip_platform.promotion import history_of
    from lotlip_platform.tables import aligned

    changes, aliases = history_of(arguments.name)
    if arguments.json:
        print(json.dumps([asdict(change) for change in changes], indent=1))
        return
    if not changes:
        print(f"no alias of {arguments.name} was ever moved by lotlip")
    else:
        print(aligned(history_rows(changes)))
    for line in strays(changes, aliases):
        print(line)
