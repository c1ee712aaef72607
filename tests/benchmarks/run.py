"""`make bench`: each claim as a ratio against a named yardstick, both measured in one run.

Prints a table and writes docs/benchmarks.md. Times are medians over repeats that take turns, in CPU
seconds of the process, since the machine may be busy with other things.
"""

from __future__ import annotations

import platform
import sys
import tempfile
from collections.abc import Sequence
from datetime import date
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "parts"))

import contrast
import ingesting
import loading
import order
import ranking
import serving
import texts
import torch
import whole_run
from measuring import Row, in_new_process
from reporting import table

from lotlip.data.store import FolderStore

REPORT = Path(__file__).parents[2] / "docs" / "benchmarks.md"
ORDER_REPEATS = 5


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        scenes = loading.Scenes(FolderStore(folder))
        rows = [*texts.rows(), *contrast.rows(), *ranking.rows(), *loading.rows(scenes)]
        rows.append(whole_run.row(scenes))
        answered = serving.section(serving.measured(scenes))
        answered += ["", *ingesting.section(ingesting.measured())]
        kept_mib = in_new_process(loading.kept_mib, folder)
        late, early = order.seek(scenes.texts, ORDER_REPEATS)
    write_report(rows, order.mixing(), late, early, contrast.share_mib(), kept_mib, answered)


def write_report(
    rows: Sequence[Row],
    mixing: Sequence[tuple[str, float, float]],
    late: float,
    early: float,
    share: tuple[float, float],
    kept_mib: float,
    answered: Sequence[str],
) -> None:
    ours_mib, naive_mib = share
    lines = [
        "# Benchmarks",
        "",
        f"`make bench` on {date.today()}: {platform.machine()}, torch {torch.__version__}, one",
        "thread, fp32 unless said; medians in CPU seconds of repeats that take turns. A speed-up",
        "is theirs / ours. Memory is what a process of its own grew by unless said, ours / theirs.",
        "",
        *table(rows),
        "",
        "No attention mask is built for a batch: texts of one length are one dense batch, and",
        "which words a corner token looks at depends on the length only. (Not so in bf16 on",
        "processors, and on GPUs: there texts of about one length are one block, masked where",
        "one is shorter.)",
        "",
        f"For the 16 images the padded text tower needs {texts.operations():.2f} times the",
        "operations of ours: as both spend their time on matrix products, the forward pass can't",
        "become much faster than that.",
        "",
        f"The loss of a batch of {contrast.LARGE_BATCH:,} on {contrast.NUM_WORKERS} workers takes "
        f"{ours_mib:,.0f} MiB on each, forward and backward, with",
        f"{contrast.NUM_TEXTS} texts of D = {contrast.WIDTH}. The naive logits alone would take "
        f"{naive_mib:,.0f} MiB (reckoned, not run): {ours_mib / naive_mib:.3f}x.",
        "",
        f"After ten epochs of loading a process is {kept_mib:.0f} MiB larger than after two.",
        "",
        "## The order of the samples",
        "",
        f"The first batch of 128 is there {late:.2f} s after a start at sample 10,000,000 of",
        f"11,000,000, and {early:.2f} s after one at sample 0: scenes of 96 px in local shards of",
        f"10,000, all 16 streams read by one process; medians of {ORDER_REPEATS}.",
        "",
        "How well the order mixes, counted over an epoch of 1,000 shards of 1,000 samples each, in",
        "batches of 1,024. Neighbours of a sample are those within 100 places of it in its shard:",
        "scraped sets have related images there, false negatives if they meet in a batch.",
        "",
        "| order | shards in a batch | neighbours met, a sample |",
        "|---|---|---|",
        *(f"| {who} | {shards:.0f} | {met:.2f} |" for who, shards, met in mixing),
        "",
        *answered,
    ]
    print("\n".join(lines))
    REPORT.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
