"""The verb `gc`."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from typing import Any


def add_verbs(verbs: Any) -> None:
    gc = verbs.add_parser("gc", help="remove checkpoints of finished runs, which nothing needs")
    gc.add_argument("store", help="where runs lie: a folder or s3://BUCKET/PREFIX")
    gc.add_argument("--delete", action="store_true", help="do it; without, only tell")
    gc.add_argument("--json", action="store_true")
    gc.set_defaults(run=_gc)


def _gc(arguments: argparse.Namespace) -> None:
    from lotlip_platform.cleaning import find, remove
    from lotlip_platform.progress import bar, say
    from lotlip_platform.tables import aligned

    found = find(arguments.store)
    if arguments.json:
        print(json.dumps([asdict(one) for one in found], indent=1))
    elif found:
        rows = [
            [
                one.run,
                str(one.num_checkpoints),
                f"{one.num_bytes / 1e6:,.1f}",
                one.needed or "may go",
            ]
            for one in found
        ]
        print(aligned([["run", "checkpoints", "MB", ""], *rows]))
    may_go = sum(one.num_bytes for one in found if not one.needed)
    if not may_go:
        say("nothing to remove")
    elif not arguments.delete:
        say(f"{may_go / 1e6:,.1f} MB may go: --delete removes them")
    else:
        with bar("gc", "run") as shown:
            freed = remove(arguments.store, found, shown.show)
        say(f"{freed / 1e6:,.1f} MB removed")
