"""The command `lotlip`: thin over functions of this package, which work from Python as well.

Exit codes: 0 done, 1 the user's error (one clear line), 2 wrong usage, 3 a gate refused,
130 interrupted.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from lotlip.errors import LotlipError, RefusedError
from lotlip_platform.interrupts import raise_interrupts
from lotlip_platform.job_environment import how_to_go_on


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit code."""
    parsed = _parsed(arguments)
    raise_interrupts()
    try:
        _enter_local_services()
        parsed.run(parsed)
    except LotlipError as error:
        print(f"lotlip: {error}", file=sys.stderr)
        return 3 if isinstance(error, RefusedError) else 1
    except KeyboardInterrupt as interrupt:
        text = str(interrupt) or f"interrupted; {how_to_go_on()} goes on from here"
        print(f"lotlip: {text}", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader has seen enough, as `head` does; nothing more can be told to it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        print(f"lotlip: {_one_line(error)}", file=sys.stderr)
        return 1
    return 0


def _parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Options may stand before `key=value` as well, which argparse alone would not take."""
    parser = _parser()
    parsed, left = parser.parse_known_args(arguments)
    if wrong := [text for text in left if text.startswith("-") or "=" not in text]:
        parser.error(f"unrecognized arguments: {' '.join(wrong)}")
    if left:
        if not hasattr(parsed, "overrides"):
            parser.error(f"unrecognized arguments: {' '.join(left)}")
        parsed.overrides = [*parsed.overrides, *left]
    return parsed


def _one_line(error: OSError) -> str:
    """A full disk or a folder without rights, of which no command knew more to say."""
    text = " ".join(str(error.strerror or error).split())
    return f"{error.filename}: {text}" if error.filename is not None else text


def _enter_local_services() -> None:
    from lotlip_platform.local_services import use_local_services

    use_local_services()


def _parser() -> argparse.ArgumentParser:
    # Verbs import what they need when they run: help and mistakes answer at once.
    from lotlip_platform import (
        cli_data,
        cli_gc,
        cli_jobs,
        cli_model,
        cli_models,
        cli_plan,
        cli_relabel,
        cli_serve,
        cli_services,
        cli_sweep,
        cli_trace,
        cli_track,
    )

    parser = argparse.ArgumentParser(
        prog="lotlip",
        description="Train, evaluate and search with language-image models for long texts.",
        epilog="Every command takes --help. The README shows the way from nothing to a model.",
    )
    verbs = parser.add_subparsers(required=True, metavar="VERB", title="verbs")
    modules = (
        cli_services,
        cli_data,
        cli_gc,
        cli_jobs,
        cli_model,
        cli_models,
        cli_plan,
        cli_relabel,
        cli_serve,
        cli_sweep,
        cli_trace,
        cli_track,
    )
    for module in modules:
        module.add_verbs(verbs)
    return parser
