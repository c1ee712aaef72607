"""The verb `trace diff`."""

from __future__ import annotations

import argparse
from typing import Any

from lotlip.errors import DataError


def add_verbs(verbs: Any) -> None:
    trace = verbs.add_parser("trace", help="what the steps of a run were trained on")
    actions = trace.add_subparsers(required=True, metavar="ACTION")
    diff = actions.add_parser("diff", help="say where two runs part; exit code 1 if they do")
    for name in ("a", "b"):
        diff.add_argument(name, metavar=name.upper(), help="a run folder: local or s3://")
    diff.set_defaults(run=_diff)


def _diff(arguments: argparse.Namespace) -> None:
    from lotlip.train.trace import compare
    from lotlip_platform.run_folder import RunFolder
    from lotlip_platform.storage import open_store

    ours, theirs = (RunFolder(open_store(uri)) for uri in (arguments.a, arguments.b))
    found = compare(ours.read_trace(), theirs.read_trace())
    if found.parts:
        raise DataError(
            f"{arguments.a} and {arguments.b} part after {found.num_equal} equal steps: "
            f"{found.text}"
        )
    print(f"{found.num_equal} steps, all equal{found.text and f'; then {found.text}'}")
