"""What a model looks at in a caption, as a page: words shaded, exact weights under the pointer."""

from __future__ import annotations

import html

from lotlip.evaluate.attention_view import AttentionView, attention_figure, view_attention
from lotlip.model import LoTLIP
from lotlip_platform.page import page

_STYLE = """
p.words { line-height: 2; } p.words span { padding: .15rem .1rem; border-radius: .2rem; }
"""


def attention_files(model: LoTLIP, caption: str) -> dict[str, bytes]:
    """What a run keeps of it: a picture and a page, by their names."""
    view = view_attention(model, caption)
    return {
        "attention.png": attention_figure(view),
        "attention.html": attention_page(view).encode(),
    }


def attention_page(view: AttentionView) -> str:
    """HTML of one file."""
    blocks = []
    for reader, name in enumerate(view.readers):
        weights = view.weights_RW[reader]
        most = float(weights.max())
        words = " ".join(
            _word(word, float(weight), float(weight) / most)
            for word, weight in zip(view.words, weights, strict=True)
        )
        blocks.append(f'<h2>{html.escape(name)}</h2>\n<p class="words">{words}</p>')
    head = "".join(f"<th>{html.escape(name)}</th>" for name in view.readers)
    rows = "".join(
        f"<tr><td>{html.escape(name)}</td>"
        + "".join(f"<td>{cosine:.2f}</td>" for cosine in view.cosines_RR[reader])
        + "</tr>"
        for reader, name in enumerate(view.readers)
    )
    body = (
        "<h1>What the last layer looks at</h1>\n"
        '<p class="of">The mean over its heads: what share each reader gives to a word.</p>\n'
        + "\n".join(blocks)
        + "\n<h2>Cosines of their features</h2>\n"
        f"<table><tr><th></th>{head}</tr>{rows}</table>"
    )
    return page("Attention", body, style=_STYLE)


def _word(word: str, weight: float, strength: float) -> str:
    colour = "; color: white" if strength > 0.6 else ""
    return (
        f'<span style="background: rgba(0, 114, 178, {strength:.3f}){colour}" '
        f'title="{100 * weight:.1f}%">{html.escape(word)}</span>'
    )
