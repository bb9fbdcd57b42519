"""How a plot of the report becomes an SVG element of its page: canvas, text, scales, colours. Not what is drawn.

matplotlib draws; the page's style sheet colours and gives its font, so plots follow light and dark. Equal figures
give equal bytes. pyplot is not used: it keeps figures, and state, in the process.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Sequence
from io import StringIO
from typing import TYPE_CHECKING, Any

from markupsafe import Markup, escape

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 4.4
"""Inches. A phone shows this at about its own size, so its text stays readable."""

# matplotlib wants colours: these stand for variables of the style sheet.
INK, MUTED, LINE, HUE_1, HUE_2, BAD = (f"#{n:02x}{n:02x}{n:02x}" for n in range(1, 7))
_VARIABLES = {INK: "ink", MUTED: "muted", LINE: "line", HUE_1: "hue-1", HUE_2: "hue-2", BAD: "bad"}
HUES = (HUE_1, HUE_2, BAD)


def legend(*labels: str) -> list[tuple[str, str]]:
    """Each label with the style sheet's variable of its colour."""
    return list(zip(labels, (_VARIABLES[hue] for hue in HUES), strict=False))


def canvas(height: float, box: tuple[float, float, float, float] = (0, 0, 1, 1)) -> tuple[Figure, Axes]:
    """A figure `height` inches high with one bare pair of axes; `box` is left, bottom, width, height."""
    from matplotlib.figure import Figure  # noqa: PLC0415 - 0.5 s and 60 MB, for reports only

    figure = Figure(figsize=(WIDTH, height))
    axes = figure.add_axes(box)
    axes.set_axis_off()
    return figure, axes


def text(axes: Axes, at: tuple[float, float], what: str, *, size: float = 8.5, **how: Any) -> None:
    """Text of any content: a `$` in the name of a table begins no formula."""
    axes.text(*at, what, size=size, parse_math=False, **{"color": MUTED, **how})


def row_text(axes: Axes, y: float, ends: tuple[float, float], texts: tuple[str, str], hue: str = INK) -> None:
    """A label and a value above a row, at its two ends."""
    text(axes, (ends[0], y + 0.25), texts[0], size=9.5, ha="left", va="bottom", color=INK)
    text(axes, (ends[1], y + 0.25), texts[1], size=9.5, ha="right", va="bottom", color=hue)


def grid(axes: Axes, ticks: Sequence[tuple[float, str]], *, vertical: bool = False) -> None:
    """Lines across the plot, each with its label at the lower or left edge."""
    for at, label in ticks:
        if vertical:
            axes.axvline(at, color=LINE, linewidth=0.7, zorder=0)
            text(axes, (at, -0.03), label, ha="center", va="top", transform=axes.get_xaxis_transform())
        else:
            axes.axhline(at, color=LINE, linewidth=0.7, zorder=0)
            text(axes, (-0.02, at), label, ha="right", va="center", transform=axes.get_yaxis_transform())


def dashed(axes: Axes, at: float, *, vertical: bool = False) -> None:
    """The line of a target."""
    draw = axes.axvline if vertical else axes.axhline
    draw(at, color=INK, linewidth=1.1, linestyle=(0, (4, 3)), zorder=1)


def share_ticks(low: float) -> list[tuple[float, str]]:
    """Round shares from `low` to 1, three to six of them."""
    step = next(step for step in (0.005, 0.01, 0.02, 0.05, 0.1, 0.2) if (1 - low) / step <= 5.001)
    count = math.floor((1 - low) / step + 1e-9)
    return [(1 - at * step, f"{1 - at * step:.3g}") for at in range(count + 1)]


def log_ticks(low: float, high: float, *, most: int = 6) -> list[tuple[float, str]]:
    """Round values between two positive ones, by their decimal logarithm: 1, 2, 5, 10, or fewer of them."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for parts in ((1, 2, 5), (1, 3), (1,)):
        values = [part * 10.0**decade for decade in decades for part in parts]
        inside = [value for value in values if low * 0.999 <= value <= high * 1.001]
        if len(inside) <= most:
            break
    return [(math.log10(value), f"{value:g}") for value in inside]


def short(count: float) -> str:
    """A count in up to five characters: 729, 12.5k, 34.8M."""
    if count < 10_000:
        return f"{count:,.0f}"
    return f"{count / 1e6:.3g}M" if count >= 999_500 else f"{count / 1e3:.3g}k"


def to_svg(name: str, figure: Figure, alt: str) -> Markup:
    """The figure as an element of a page that holds others: its own ids, no colours, no font. `alt` is its text."""
    from matplotlib import rc_context  # noqa: PLC0415

    target = StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with rc_context({"svg.hashsalt": name, "svg.fonttype": "none"}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # the browser has fonts that matplotlib lacks
        figure.savefig(target, format="svg", transparent=True, metadata=nothing)
    svg = target.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<style.*?</style>\s*|<!--.*?-->\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="', f'id="{name}-', svg).replace("url(#", f"url(#{name}-").replace('href="#', f'href="#{name}-')
    svg = re.sub(r"font: (?:\w+ )?([\d.]+px) [^;\"]*", r"font-size: \1", svg)
    for hue, variable in _VARIABLES.items():
        svg = svg.replace(hue, f"var(--{variable})")
    box = re.search(r'viewBox="([^"]*)"', svg)
    start = f'<svg viewBox="{box[1] if box else ""}" role="img" aria-label="{escape(alt)}">'
    return Markup(start + svg[svg.index(">") + 1 :])  # noqa: S704 - matplotlib escaped the texts, and escape() the alt
