"""`make findings`: the paper's findings asked in miniature, into docs/findings.md.

Runs the sweeps on scenes with the local services, or goes on where an earlier start was
interrupted; of sweeps that are all through only the page is written again.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from page import findings_page

from lotlip_platform.local_services import use_local_services
from lotlip_platform.storage import open_store
from lotlip_platform.sweep_ledger import Ledger, Score, scores

_STORE = "s3://lotlip/findings"
_NUM_TESTED = 2000
_DOCS = Path(__file__).parents[2] / "docs"
_FIGURES = {"arms": "bars", "caption_length": "with_costs", "weights": "bars"}


def main() -> None:
    _lotlip("up")
    _lotlip("data", "scenes", "s3://lotlip/scenes/train", "--samples", "20000")
    test = "s3://lotlip/scenes/test"
    _lotlip("data", "scenes", test, "--samples", str(_NUM_TESTED), "--split", "test")
    on_test = f"set.eval.data={test}", f"set.eval.num_samples={_NUM_TESTED}"
    for study in ("arms", "caption_length", "weights", "weights_size"):
        own = f"store={_STORE}", "seeds=[0,1,2,3,4]"
        _lotlip("sweep", f"sweep/{study}", *own, *on_test)
    use_local_services()
    write_page()


def write_page() -> None:
    """Of the sweeps, all of whose trials must have come to their end."""
    studies = ("arms", "caption_length", "weights", "weights_size")
    page = findings_page(*map(_scores, studies), num_tested=_NUM_TESTED)
    (_DOCS / "findings.md").write_text(page)
    (_DOCS / "figures").mkdir(exist_ok=True)
    for study, figure in _FIGURES.items():
        picture = open_store(f"{_STORE}/{study}").read(f"report/figures/{figure}.png")
        (_DOCS / "figures" / f"findings_{study}.png").write_bytes(picture)


def _lotlip(*arguments: str) -> None:
    subprocess.run([Path(sys.executable).with_name("lotlip"), *arguments], check=True)


def _scores(study: str) -> list[Score]:
    records = Ledger(open_store(f"{_STORE}/{study}")).read().values()
    found = scores(list(records), "long_text_to_image_r1", "max")
    if missing := [score.label for score in found if not score.is_whole]:
        sys.exit(f"{study}: trials of {'; '.join(missing)} did not come to their end")
    return found


if __name__ == "__main__":
    main()
