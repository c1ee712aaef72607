"""The verb `jobs`."""

from __future__ import annotations

import argparse
import json
import re
import signal
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from lotlip.errors import ConfigError

if TYPE_CHECKING:
    from lotlip_platform.finding import Finding
    from lotlip_platform.job_status import Status

_SUBMITTED = ("train", "sweep", "precompute", "relabel", "eval")


def add_verbs(verbs: Any) -> None:
    jobs = verbs.add_parser("jobs", help="the same verbs on a Ray cluster")
    actions = jobs.add_subparsers(required=True, metavar="ACTION", title="actions")

    submit = _action(actions, "submit", _submit, "check a job, and submit it; prints its id")
    submit.add_argument("verb", choices=_SUBMITTED, metavar="VERB", help=", ".join(_SUBMITTED))
    submit.add_argument("config", help="as of that verb")
    submit.add_argument("overrides", nargs="*", default=[], metavar="key=value")
    submit.add_argument(
        "--env",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a variable of the job on the cluster; no secrets",
    )

    listing = _action(actions, "list", _list, "the newest jobs, as the store has them")
    listing.add_argument("--last", type=int, default=20, metavar="N")
    listing.add_argument("--json", action="store_true")

    status = _action(actions, "status", _status, "how a job stands", id=True)
    status.add_argument("--json", action="store_true")

    logs = _action(actions, "logs", _logs, "what a job, or one of its workers, wrote", id=True)
    logs.add_argument("-f", "--follow", action="store_true", help="until the job ends")
    logs.add_argument("--rank", type=int, metavar="N", help="of this worker")
    logs.add_argument("--grep", default="", metavar="REGEX", help="lines that match only")
    logs.add_argument("--attempt", type=int, default=0, metavar="N", help="default the newest")

    _action(actions, "stop", _stop, "have a job save and end", id=True)
    _action(actions, "resume", _resume, "go on with a job that was stopped or failed", id=True)


def _action(actions: Any, name: str, run: Any, help: str, *, id: bool = False) -> Any:
    action = actions.add_parser(name, help=help)
    if id:
        action.add_argument("id", metavar="ID")
    if name != "list":
        action.add_argument(
            "--address",
            default="",
            metavar="URL",
            help="the cluster's dashboard, http://HOST:8265; default "
            + ("where it was submitted" if id else "RAY_API_SERVER_ADDRESS, or the local one"),
        )
    action.add_argument(
        "--store",
        default="",
        metavar="URI",
        help="where jobs are kept; default LOTLIP_JOBS, or s3://lotlip/jobs",
    )
    action.set_defaults(run=run)
    return action


def _submit(arguments: argparse.Namespace) -> None:
    environment = _environment(arguments.env)
    from lotlip_platform.finding import render
    from lotlip_platform.job_submission import submit
    from lotlip_platform.progress import say

    def told(finding: Finding) -> None:
        say(render([finding]))

    try:
        id = submit(
            arguments.verb,
            arguments.config,
            arguments.overrides,
            address=arguments.address,
            store=arguments.store,
            environment=environment,
            on_finding=told,
            say=say,
        )
    except KeyboardInterrupt:
        raise KeyboardInterrupt("interrupted: nothing was submitted") from None
    print(id)
    say(f"watch it: lotlip jobs logs -f {id}")


def _environment(given: list[str]) -> dict[str, str]:
    """Raises: ConfigError."""
    environment = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not (name and equals):
            raise ConfigError(f"--env {text!r} is not of the form NAME=VALUE")
        environment[name] = value
    return environment


def _list(arguments: argparse.Namespace) -> None:
    from lotlip_platform.job_status import listed
    from lotlip_platform.tables import aligned

    if arguments.last < 1:
        raise ConfigError(f"--last {arguments.last} must be 1 or more")
    found = listed(store=arguments.store, most=arguments.last)
    if arguments.json:
        print(json.dumps([_as_json(one) for one in found], indent=1))
        return
    if not found:
        print("no jobs yet")
        return
    rows = [[one.job.id, one.state, _when(one), one.job.by, one.job.output] for one in found]
    print(aligned([["job", "state", "submitted", "by", "output"], *rows]))


def _status(arguments: argparse.Namespace) -> None:
    from lotlip_platform.job_status import status

    found = status(arguments.id, address=arguments.address, store=arguments.store)
    if arguments.json:
        print(json.dumps(_as_json(found), indent=1))
        return
    _print_status(found)


def _print_status(found: Status) -> None:
    attempt, seen = found.attempt, found.seen
    lines = [
        ("state", found.state),
        ("attempt", f"{attempt.number}, submitted {_when(found)} by {found.job.by}"),
        ("cluster", f"{attempt.address}, job {attempt.submission_id}"),
        ("output", found.job.output),
        ("code", found.job.code_version),
    ]
    if seen is not None:
        ago = f"{found.silence_s:.0f} s ago" if seen.state == "running" else "at its end"
        lines.append(("last seen", f"{ago}, on {seen.host}"))
        if seen.exit_code is not None:
            lines.append(("exit code", _exit_code(seen.exit_code)))
        if seen.last_line:
            lines.append(("last line", seen.last_line))
    if found.note:
        lines.append(("note", found.note))
    for name, text in lines:
        print(f"{name:10} {text}")


def _exit_code(code: int) -> str:
    if code == -signal.SIGKILL:
        return f"{code}: killed outright, perhaps since the head's memory was full"
    return f"{code}: killed by {signal.Signals(-code).name}" if code < 0 else str(code)


def _logs(arguments: argparse.Namespace) -> None:
    from lotlip_platform.job_folder import DRIVER
    from lotlip_platform.job_logs import log_lines
    from lotlip_platform.progress import say

    try:
        wanted = re.compile(arguments.grep)
    except re.error as error:
        raise ConfigError(f"--grep {arguments.grep!r} is no regular expression: {error}") from error
    lines = log_lines(
        arguments.id,
        source=DRIVER if arguments.rank is None else f"rank-{arguments.rank:04d}",
        attempt=arguments.attempt,
        follow=arguments.follow,
        address=arguments.address,
        store=arguments.store,
        say=say,
    )
    try:
        for line in lines:
            if wanted.search(line):
                print(line, flush=True)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("interrupted: the job goes on") from None


def _stop(arguments: argparse.Namespace) -> None:
    from lotlip_platform.job_control import stop
    from lotlip_platform.progress import say

    say("waiting until it has saved")
    _print_status(stop(arguments.id, address=arguments.address, store=arguments.store))


def _resume(arguments: argparse.Namespace) -> None:
    from lotlip_platform.job_control import resume

    number = resume(arguments.id, address=arguments.address, store=arguments.store)
    print(f"{arguments.id}, attempt {number}")


def _when(found: Status) -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(found.attempt.time_s))


def _as_json(found: Status) -> dict[str, Any]:
    values = asdict(found)
    del values["job"]["files"]
    return values
