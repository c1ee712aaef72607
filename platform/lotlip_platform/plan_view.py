"""A plan for people: a table and a picture."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from lotlip.evaluate.figures import COLOURS, FONT_PT, plain_axes, png
from lotlip_platform.plan import Estimate, Load, stops_at
from lotlip_platform.plan_config import PlanConfig
from lotlip_platform.tables import aligned


def heading(load: Load, cluster: PlanConfig) -> list[str]:
    """What does not depend on the number of GPUs."""
    lines = [
        f"{load.num_steps:,} steps over {load.num_samples:,} samples of "
        f"{load.sample_bytes / 1000:,.1f} kB in {load.num_shards:,} shards",
        f"{load.num_parameters / 1e6:,.1f} M parameters, {load.num_trained / 1e6:,.1f} M of them "
        f"trained; {load.sample_flops / 1e9:,.1f} GFLOP a sample; a checkpoint has "
        f"{load.checkpoint_bytes / 1e9:,.2f} GB",
    ]
    if load.features_flops and cluster.flops_per_s:
        hours = load.features_flops / cluster.flops_per_s / 3600
        lines.append(f"features of the images, once for all runs: {hours:,.1f} GPU hours")
    return lines


def rows(estimates: Sequence[Estimate], cluster: PlanConfig) -> list[list[str]]:
    """The table, its head first."""
    head = ["GPUs", "images each", "step, ms", "samples/s", "efficiency", "hours", "failures"]
    head += ["goodput", "cost", "network, MB/step", "store, MB/s", "requests/s"]
    return [head, *(_row(estimate, cluster) for estimate in estimates)]


def table(load: Load, estimates: Sequence[Estimate], cluster: PlanConfig) -> str:
    """For a terminal."""
    lines = [*heading(load, cluster), "", aligned(rows(estimates, cluster))]
    lines += [f"{e.num_gpus} GPUs: {e.problem}" for e in estimates if e.problem]
    if end := stops_at(list(estimates)):
        lines.append(f"beyond {end} GPUs, twice as many are less than 1.5 times as fast")
    return "\n".join(lines)


def figure(estimates: Sequence[Estimate], title: str) -> bytes:
    """Hours against GPUs, and what a step's time goes to, as a PNG."""
    shown = [estimate for estimate in estimates if not estimate.problem]
    sheet = Figure(figsize=(9, 3.6), layout="constrained")
    sheet.suptitle(title, fontsize=FONT_PT + 3)
    left, right = sheet.subplots(1, 2)
    gpus = [estimate.num_gpus for estimate in shown]
    ideal = [shown[0].total_hours * gpus[0] / n for n in gpus]
    left.plot(gpus, ideal, "--", color=COLOURS[-1], label=f"as {gpus[0]} GPU, shared out")
    hours = [estimate.total_hours for estimate in shown]
    left.plot(gpus, hours, "o-", color=COLOURS[0], label="expected, with failures")
    left.set_yscale("log")
    left.set_ylabel("hours", fontsize=FONT_PT)
    parts = {
        "towers and loss": [e.compute_s for e in shown],
        "text features of all": [e.gather_s for e in shown],
        "sum of gradients, not hidden": [e.step_s - e.alone_s - e.gather_s for e in shown],
        "the rest": [e.alone_s - e.compute_s for e in shown],
    }
    below = [0.0] * len(shown)
    for (name, seconds), colour in zip(parts.items(), COLOURS, strict=False):
        shares = [s / e.step_s for s, e in zip(seconds, shown, strict=True)]
        right.bar(range(len(gpus)), shares, bottom=below, label=name, color=colour)
        below = [b + s for b, s in zip(below, shares, strict=True)]
    right.set_ylabel("share of a step", fontsize=FONT_PT)
    right.set_xticks(range(len(gpus)), [str(n) for n in gpus])
    left.set_xscale("log")
    left.xaxis.set_major_locator(FixedLocator(gpus))
    left.xaxis.set_minor_locator(NullLocator())
    for axis in (left.xaxis, left.yaxis):
        axis.set_major_formatter(lambda value, _: f"{value:g}")
    for panel, columns in ((left, 1), (right, 2)):
        plain_axes(panel)
        panel.set_xlabel("GPUs", fontsize=FONT_PT)
        where = {"loc": "lower center", "bbox_to_anchor": (0.5, 1.0)}
        panel.legend(fontsize=FONT_PT - 1, frameon=False, ncols=columns, **where)
    return png(sheet)


def _row(e: Estimate, cluster: PlanConfig) -> list[str]:
    if e.problem:
        return [str(e.num_gpus), *["-"] * 11]
    return [
        str(e.num_gpus),
        str(e.images_per_gpu),
        f"{1000 * e.step_s:,.0f}",
        f"{e.samples_per_s:,.0f}",
        f"{100 * e.efficiency:.0f}%",
        f"{e.total_hours:,.1f}",
        f"{e.num_failures:.2f}",
        f"{100 * e.goodput:.1f}%",
        f"{e.cost:,.0f}" if cluster.price_per_gpu_hour else "-",
        f"{(e.gathered_bytes + e.reduced_bytes) / 1e6:,.0f}",
        f"{e.read_bytes_per_s / 1e6:,.1f}",
        f"{e.requests_per_s:,.2f}",
    ]
