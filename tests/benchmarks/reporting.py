"""Rows of claims as a table."""

from __future__ import annotations

from collections.abc import Sequence

from measuring import Row


def table(rows: Sequence[Row]) -> list[str]:
    """In Markdown."""
    lines = [
        "| what | yardstick | ours, s | yardstick, s | speed-up | memory, MiB | goal |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        memory = "-"
        if row.theirs_mib:
            share = row.ours_mib / row.theirs_mib
            memory = f"{row.ours_mib:.0f} / {row.theirs_mib:.0f} = {share:.3f}x"
        lines.append(
            f"| {row.what} | {row.yardstick} | {row.ours_s:.3f} | {row.theirs_s:.3f} "
            f"| {row.theirs_s / row.ours_s:.2f}x | {memory} | {row.goal} |"
        )
    return lines
