"""Which of a long caption's sentences a model goes by, as the bytes of a PNG."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lotlip.evaluate.figures import COLOURS, FONT_PT, plain_axes, png
from lotlip.evaluate.published.measure import SENTENCES, Result
from lotlip.evaluate.retrieval import Interval

_FOUND = "text_to_image_r1"


def sentences_chart(result: Result) -> bytes:
    """Recall@1 of whole captions, of changed ones, of their sentences, and by length."""
    shares = result.answered.shares
    changed = [
        ("whole", shares.get(_FOUND)),
        ("first sentence\nremoved", shares.get(f"headless_{_FOUND}")),
        ("first sentence\nat the end", shares.get(f"moved_{_FOUND}")),
    ]
    alone = [
        (str(place), shares.get(f"sentence_{place}_{_FOUND}")) for place in range(1, SENTENCES + 1)
    ]
    lengths = [
        (name.removeprefix("words_").removesuffix(f"_{_FOUND}").replace("_", "-"), share)
        for name, share in shares.items()
        if name.startswith("words_")
    ]
    figure = Figure(figsize=(10, 3.4), layout="constrained")
    panels = figure.subplots(1, 3, sharey=True)
    _bars(panels[0], changed, "caption", COLOURS[0])
    _bars(panels[1], alone, "one sentence alone", COLOURS[1])
    _bars(panels[2], lengths, "words of the caption", COLOURS[2])
    panels[0].set_ylabel("text to image recall@1, %", fontsize=FONT_PT)
    figure.suptitle(
        f"{result.asked.about.title}: what the model reads ({result.asked.how}; 95% intervals)",
        fontsize=FONT_PT + 3,
    )
    return png(figure)


def _bars(
    panel: Axes, bars: Sequence[tuple[str, Interval | None]], xlabel: str, colour: str
) -> None:
    there = [(name, share) for name, share in bars if share is not None]
    at = range(len(there))
    values = [100 * share.value for _, share in there]
    below = [100 * (share.value - share.low) for _, share in there]
    above = [100 * (share.high - share.value) for _, share in there]
    panel.bar(at, values, yerr=[below, above], color=colour, capsize=3, width=0.7)
    panel.set_xticks(at, labels=[name for name, _ in there], fontsize=FONT_PT - 1)
    panel.set_xlabel(xlabel, fontsize=FONT_PT)
    panel.set_ylim(0, 100)
    plain_axes(panel)
