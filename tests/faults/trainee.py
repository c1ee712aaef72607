"""Trains as `lotlip train` does, and writes what it is told, with the time, to a file.

    trainee.py CONFIG.json EVENTS.jsonl

Exit codes are those of the command: 0 done, 1 an error, 130 stopped as it was told to.
"""

from __future__ import annotations

import json
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from lotlip.errors import LotlipError
from lotlip_platform.config import build_config
from lotlip_platform.train import train
from lotlip_platform.train_config import TrainConfig

TOLD = ("kind", "step", "text", "pid", "node", "rank", "samples")


def main(config: Path, events: Path) -> int:
    with events.open("a", buffering=1) as file:

        def watch(event: dict[str, Any]) -> None:
            told = {name: event[name] for name in TOLD if name in event}
            file.write(json.dumps({"time": time.time(), **told}) + "\n")

        try:
            train(build_config(TrainConfig, json.loads(config.read_text())), watch)
        except LotlipError as error:
            watch({"kind": "error", "text": str(error)})
            return 1
        except KeyboardInterrupt:
            return 130
        except Exception:  # noqa: BLE001 - whatever it is, the round tells it
            watch({"kind": "error", "text": traceback.format_exc()})
            return 1
    return 0


def interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, interrupt)
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
