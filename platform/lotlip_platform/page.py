"""Pages of one file, to be read without a network."""

from __future__ import annotations

import base64
import html
import io

from lotlip.images import decode

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem;
       color: #222; }
h1 { margin-bottom: 0; } .of { color: #666; margin-top: 0; }
table { border-collapse: collapse; } td, th { padding: .25rem .8rem; text-align: right; }
th { border-bottom: 2px solid #888; } td { border-bottom: 1px solid #ddd; }
td:first-child, th:first-child { text-align: left; } td { white-space: nowrap; }
tr.failed td { white-space: normal; } tr.failed td { color: #b00020; }
.wide { overflow-x: auto; } figure { margin: 2rem 0; }
img { max-width: 100%; } figcaption { color: #666; }
"""


def page(title: str, body: str, *, style: str = "") -> str:
    """An HTML page; `body` is HTML already, `style` is CSS beside that of all pages."""
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>
<style>{_STYLE}{style}</style></head><body>
{body}
</body></html>
"""


def embedded(content: bytes, *, kind: str = "png") -> str:
    """The address of a picture that holds it."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def thumbnail(encoded: bytes, side_px: int) -> str:
    """The address of a small copy of an encoded image. Raises: DataError."""
    image = decode(encoded).convert("RGB")
    image.thumbnail((side_px, side_px))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
    return embedded(buffer.getvalue(), kind="jpeg")
