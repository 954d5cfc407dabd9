"""Building blocks of our reports: one self-contained HTML page with tables and embedded plots."""

import base64
import html
import io
import os
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

COLOURS = ("#ff6b6b", "#4dabf7", "#ffd43b", "#69db7c", "#da77f2", "#ffa94d", "#3bc9db", "#f783ac")
PAPER, INK, FAINT = "#14181f", "#e6e9ee", "#8b95a3"

_STYLE = """
:root{color-scheme:light dark;
--faint:light-dark(#667080,#8b95a3);--line:light-dark(#dfe3e8,#2a313b)}
body{font:16px/1.55 system-ui,sans-serif;max-width:62rem;margin:0 auto;padding:2.5rem 1.25rem;
background:light-dark(#fff,#0d1015);color:light-dark(#1b2028,#e6e9ee)}
h1{font-size:1.9rem;line-height:1.2;margin:0}h2{font-size:1.15rem;margin:2.6rem 0 .8rem}
p,figcaption,th{color:var(--faint)}figure{margin:0 0 1.8rem}figcaption{margin:.5rem 0}
img{width:100%;border-radius:10px;display:block}
table{border-collapse:collapse;font-variant-numeric:tabular-nums}
th,td{text-align:left;padding:.4rem 1.8rem .4rem 0;border-bottom:1px solid var(--line)}
th{font-weight:500}.n :not(:first-child){text-align:right}.last tr:last-child{font-weight:600}
.n{display:block;overflow-x:auto}.n td{white-space:pre}
.n td,.n th{padding-right:.8rem;font-size:.9rem}
pre{background:light-dark(#f4f6f8,#14181f);padding:1rem;border-radius:10px;overflow-x:auto}
"""


def figure(width: float, height: float) -> Figure:
    """An empty dark figure of some inches."""
    drawn = Figure((width, height), dpi=120, facecolor=PAPER, layout="constrained")
    drawn.get_layout_engine().set(w_pad=0.1, h_pad=0.1)
    return drawn


def style_axis(axis: Axes, title: str = "", xlabel: str = "") -> None:
    """Give an axis the look of the page."""
    axis.set_title(title, color=INK, fontsize=10)
    axis.set_xlabel(xlabel, color=FAINT)
    axis.set_facecolor(PAPER)
    axis.tick_params(colors=FAINT)
    axis.grid(alpha=0.15)
    axis.set_axisbelow(True)
    axis.spines[:].set_visible(False)


def image_html(drawn: Figure, caption: str) -> str:
    """The figure as an embedded PNG with its caption."""
    png = io.BytesIO()
    drawn.savefig(png, format="png")
    data, text = base64.b64encode(png.getvalue()).decode(), html.escape(caption)
    source = f"data:image/png;base64,{data}"
    return f'<figure><figcaption>{text}</figcaption><img alt="{text}" src="{source}"></figure>'


def table_html(
    cells: Sequence[Sequence[str]], style: str = "", header: Sequence[str] | None = None
) -> str:
    """A table; `style` holds "n" for numbers, unbroken and to the right, "last" for a bold end."""

    def row(line: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in line) + "</tr>"

    head = row(header, "th") if header else ""
    return f'<table class="{style}">{head}{"".join(row(line, "td") for line in cells)}</table>'


def write_page(path: Path, title: str, body: Sequence[str]) -> Path:
    """Write the page, replacing an older one as a whole, and return its path.

    Raises:
        OSError: The file cannot be written.
    """
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head>"
        f"<body><h1>{html.escape(title)}</h1>{chr(10).join(body)}</body></html>\n"
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    partial.write_text(page, encoding="utf-8")
    partial.replace(path)
    return path
