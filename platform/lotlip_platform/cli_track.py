"""The verbs `track sync` and `track reconcile`."""

from __future__ import annotations

import argparse
from typing import Any

from lotlip.errors import TrackingError


def add_verbs(verbs: Any) -> None:
    track = verbs.add_parser("track", help="bring to MLflow what could not be sent while training")
    actions = track.add_subparsers(required=True, metavar="ACTION")
    sync = actions.add_parser("sync", help="send what is kept on this machine")
    sync.set_defaults(run=_sync)
    reconcile = actions.add_parser(
        "reconcile", help="end runs that MLflow takes for running, but that nobody trains"
    )
    reconcile.add_argument(
        "--tracking", default="", metavar="URI", help="MLflow server; default MLFLOW_TRACKING_URI"
    )
    reconcile.set_defaults(run=_reconcile)


def _sync(arguments: argparse.Namespace) -> None:
    from lotlip_platform.track import sync

    num_told = num_left = 0
    for one in sync():
        print(one.text, flush=True)
        num_told += 1
        num_left += not one.is_done
    if num_left:
        raise TrackingError(f"{num_left} of {num_told} runs are not wholly in MLflow, see above")
    if not num_told:
        print("nothing is left to send")


def _reconcile(arguments: argparse.Namespace) -> None:
    from lotlip_platform.track import reconcile

    num_told = 0
    for line in reconcile(arguments.tracking):
        print(line, flush=True)
        num_told += 1
    if not num_told:
        print("no run is taken for running that is not")
