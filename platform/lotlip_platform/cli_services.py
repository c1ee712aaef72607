"""The verbs `doctor`, `up`, `down`, `ui` and `demo`."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
from collections.abc import Mapping
from typing import Any

from lotlip.errors import ClusterError, ConfigError
from lotlip_platform.progress import say

_DEMO_BYTES = 3_000_000_000
_SMALLEST_DEMO = 1280
LOCAL_BUCKET = "s3://lotlip"
"""The bucket of the local S3 endpoint that the shipped configs name."""


def add_verbs(verbs: Any) -> None:
    doctor = verbs.add_parser("doctor", help="what works here, what doesn't, what to do about it")
    doctor.add_argument(
        "--store", default="", metavar="URI", help="a store to write to, read, and clean"
    )
    doctor.add_argument(
        "--address", default="", metavar="URL", help="a Ray cluster's dashboard: look at it instead"
    )
    doctor.add_argument("--json", action="store_true")
    doctor.set_defaults(run=_doctor)

    up = verbs.add_parser("up", help="start the local S3 endpoint, MLflow and Ray")
    up.add_argument("services", nargs="*", metavar="SERVICE", help="s3, mlflow, ray; default all")
    up.set_defaults(run=_up)

    down = verbs.add_parser("down", help="end them; the S3 endpoint's objects are lost")
    down.set_defaults(run=_down)

    ui = verbs.add_parser("ui", help="print the addresses of their pages")
    ui.add_argument("--open", action="store_true", help="open them in a browser, too")
    ui.set_defaults(run=_ui)

    demo = verbs.add_parser("demo", help="the whole story on this machine, in some ten minutes")
    demo.add_argument(
        "--samples", type=int, default=20_000, metavar="N", help="scenes to train on; 20000"
    )
    demo.set_defaults(run=_demo)


def _doctor(arguments: argparse.Namespace) -> None:
    from lotlip_platform.doctor import examine, examine_cluster, render

    if arguments.address:
        findings = examine_cluster(arguments.address, arguments.store)
    else:
        findings = examine(store_uri=arguments.store)
    if arguments.json:
        print(json.dumps([dataclasses.asdict(finding) for finding in findings], indent=1))
    else:
        print(render(findings))
    failed = [finding.name for finding in findings if finding.state == "error"]
    if failed:
        raise ClusterError(f"not everything works: {', '.join(failed)}")


def _up(arguments: argparse.Namespace) -> None:
    from lotlip_platform.local_services import SERVICES, environment, up, use_local_services
    from lotlip_platform.storage import ensure_bucket

    running = up(arguments.services or SERVICES, say)
    if "AWS_ENDPOINT_URL" in use_local_services():
        ensure_bucket(LOCAL_BUCKET)
    for service in running.values():
        print(f"{service.name:8} {service.url}")
    print(f"\nlotlip finds them by itself, and {LOCAL_BUCKET}. For other programs:")
    for name, value in environment().items():
        print(f"export {name}={value}")


def _down(arguments: argparse.Namespace) -> None:
    from lotlip_platform.local_services import down

    ended = down()
    print(f"ended: {', '.join(ended)}" if ended else "nothing was running")


def _ui(arguments: argparse.Namespace) -> None:
    import webbrowser

    from lotlip_platform.local_services import ray_token_path, services

    running = services()
    if not running:
        raise ClusterError("nothing is running: start it with lotlip up")
    for service in running.values():
        print(f"{service.name:8} {service.url}")
        if arguments.open:
            webbrowser.open(service.url)
    if "ray" in running:
        print(f"\nRay's page asks once for the token in {ray_token_path()}")


def _demo(arguments: argparse.Namespace) -> None:
    from lotlip_platform.local_services import require_disk, up, use_local_services
    from lotlip_platform.storage import ensure_bucket

    if arguments.samples < _SMALLEST_DEMO:
        raise ConfigError(f"--samples {arguments.samples} must be {_SMALLEST_DEMO} or more")
    require_disk(_DEMO_BYTES)
    say("[1/5] local services")
    up(on_progress=say)
    _require_local(use_local_services())
    ensure_bucket(LOCAL_BUCKET)
    # Not before: Ray reads the variables of the services when it is imported.
    from lotlip_platform.demo import demo

    demo(arguments.samples)


def _require_local(variables: Mapping[str, str]) -> None:
    """Raises: ConfigError if the user's own settings lead elsewhere than to the local services."""
    if {"AWS_ENDPOINT_URL", "MLFLOW_TRACKING_URI", "RAY_ADDRESS"} <= variables.keys():
        return
    leading = ("AWS_PROFILE", "AWS_ACCESS_KEY_ID", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3")
    names = [n for n in (*leading, "MLFLOW_TRACKING_URI", "RAY_ADDRESS") if os.environ.get(n)]
    raise ConfigError(
        f"the demo uses local services only, but {', '.join(names)} in the environment would lead "
        "to others: unset it for this command"
    )
