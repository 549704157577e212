"""The parts of one self-contained HTML page: escaped text, tables, curves, and maps of numbers.

Text becomes part of a page by `tag` alone, which escapes all that is not `Markup` already. The page
has no script, asks for no resource, and forbids both by its Content-Security-Policy.
"""

import base64
import io
import math
import re
from html import escape

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]")  # of no meaning in HTML
WIDTH, HEIGHT, LEFT, BOTTOM = 480, 240, 48, 34  # of a chart and of its margins
POINTS = 1000  # in a curve: more are not seen
STYLE = """
:root { color-scheme: light dark; --text: #1c1c1c; --back: #fdfdfd; --faint: #767676;
  --line: #d8d8d8; --box: #f2f2f0; --c0: #4477aa; --c1: #c8384c; --c2: #228833; }
@media (prefers-color-scheme: dark) { :root { --text: #e4e4e4; --back: #161618; --faint: #9a9a9a;
  --line: #3a3a3e; --box: #212125; --c0: #7fb0dd; --c1: #f58a97; --c2: #77cc88; } }
body { margin: 0 auto; padding: 1rem; max-width: 60rem; background: var(--back);
  color: var(--text); font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; margin: 0; } h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; }
p { margin: .4rem 0; } .faint, figcaption { color: var(--faint); font-size: .85rem; }
dl { display: grid; grid-template-columns: repeat(auto-fill, minmax(9rem, 1fr)); gap: .6rem; }
dl div, pre { background: var(--box); border-radius: 6px; padding: .5rem .7rem; }
dt { color: var(--faint); font-size: .8rem; } dd { margin: 0; font-weight: 600; }
pre { white-space: pre-wrap; font: .85rem/1.4 ui-monospace, monospace; margin: .3rem 0 1rem; }
table { border-collapse: collapse; font-size: .9rem; width: 100%; }
th, td { text-align: left; vertical-align: top; padding: .2rem .6rem .2rem 0;
  border-bottom: 1px solid var(--line); }
svg { width: 100%; height: auto; max-height: 24rem; }
svg text { fill: var(--faint); font: 12px system-ui, sans-serif; }
.grid { stroke: var(--line); } polyline { fill: none; stroke-width: 1.6; }
.c0 { stroke: var(--c0); } .c1 { stroke: var(--c1); } .c2 { stroke: var(--c2); }
circle { fill: var(--back); stroke-width: 2; } figure { margin: 0; }
.maps { display: grid; grid-template-columns: repeat(auto-fill, minmax(14rem, 1fr)); gap: 1rem; }
.maps text { font: 9px ui-monospace, monospace; } image { image-rendering: pixelated; }
"""


class Markup(str):
    """HTML as it is; any other text is escaped."""


def tag(name: str, *children, **attributes) -> Markup:
    """One element. `class_` is the attribute class, and `stroke_width` is stroke-width."""
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{clean(value)}"'
        for key, value in attributes.items()
    )
    inside = "".join(child if isinstance(child, Markup) else clean(child) for child in children)
    return Markup(f"<{name}{given}>{inside}</{name}>")


def clean(value) -> str:
    return escape(CONTROL.sub("\ufffd", str(value)), quote=True)


def together(parts) -> Markup:
    return Markup("\n".join(part if isinstance(part, Markup) else clean(part) for part in parts))


def document(title: str, body: Markup) -> str:
    head = together(
        (
            Markup('<meta charset="utf-8">'),
            Markup('<meta name="viewport" content="width=device-width, initial-scale=1">'),
            Markup(f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'),
            tag("title", title),
            Markup(f"<style>{STYLE}</style>"),
        )
    )
    page = Markup(f"<head>\n{head}\n</head>\n{tag('body', body)}")
    return f"<!DOCTYPE html>\n{tag('html', page, lang='en')}\n"


def table(header: list, rows: list[list]) -> Markup:
    lines = [tag("tr", *(tag("th", cell) for cell in header))]
    lines += [tag("tr", *(tag("td", cell) for cell in row)) for row in rows]
    return tag("table", *lines)


def is_number(value) -> bool:
    """A finite one of a size that can be drawn; what stands in a file may be anything."""
    return type(value) in (int, float) and -1e18 < value < 1e18


def chart(curves: dict[str, list[tuple]], across: str, up: str) -> Markup:
    """Curves of (x, y) over one pair of axes; one of few points shows them, with their figures."""
    curves = {name: [(x, y) for x, y in points] for name, points in curves.items() if points}
    if not curves:
        return tag("p", "Nothing was recorded.", class_="faint")
    xs, ys = zip(*(point for points in curves.values() for point in points), strict=True)
    columns, rows = ticks(min(xs), max(xs)), ticks(min(ys), max(ys))

    def place(x, y) -> tuple[float, float]:
        wide = (x - columns[0]) / (columns[-1] - columns[0])
        high = (y - rows[0]) / (rows[-1] - rows[0])
        across, up = wide * (WIDTH - LEFT - 12), high * (HEIGHT - BOTTOM - 24)
        return round(LEFT + across, 1), round(HEIGHT - BOTTOM - up, 1)

    parts = []
    for row in rows:
        left, y = place(columns[0], row)
        parts.append(tag("line", x1=left, x2=WIDTH - 12, y1=y, y2=y, class_="grid"))
        parts.append(tag("text", f"{row:,.10g}", x=left - 6, y=y + 4, text_anchor="end"))
    for column in columns:
        x, bottom = place(column, rows[0])
        parts.append(tag("text", f"{column:,.10g}", x=x, y=bottom + 16, text_anchor="middle"))
    parts.append(tag("text", across, x=WIDTH - 12, y=HEIGHT - 4, text_anchor="end"))
    parts.append(tag("text", up, x=4, y=12))
    for number, (name, points) in enumerate(curves.items()):
        thin = points[:: -(-len(points) // POINTS)]
        thin += [points[-1]] if thin[-1] != points[-1] else []
        line = " ".join(f"{x},{y}" for x, y in (place(*point) for point in thin))
        parts.append(tag("polyline", tag("title", name), points=line, class_=f"c{number}"))
        for point in thin if len(points) <= 60 else ():
            said = tag("title", f"{name}, {across} {point[0]:,.10g}: {point[1]:.4f}")
            x, y = place(*point)
            parts.append(tag("circle", said, cx=x, cy=y, r=3, class_=f"c{number}"))
        x = WIDTH - 12 - 110 * (len(curves) - number - 1)
        parts.append(tag("line", x1=x - 100, x2=x - 82, y1=8, y2=8, class_=f"c{number}"))
        parts.append(tag("text", name, x=x - 76, y=12))
    label = f"{', '.join(curves)} over {across}"
    drawing = tag("svg", *parts, viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", aria_label=label)
    return tag("figure", drawing)


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers around all from low to high."""
    if high - low < 1e-9 * max(1.0, abs(high)):
        low, high = low - 0.5 * max(1.0, abs(low)), high + 0.5 * max(1.0, abs(high))
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = power * next(round_ for round_ in (1, 2, 5, 10) if round_ * power >= 0.999 * rough)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [number * step for number in range(first, last + 1)]


def heat_map(weights, rows: list[str], caption: str) -> Markup:
    """Numbers (T, T) of 0 to 1 as a picture: row by row what each of `rows` looks at."""
    T, cell = len(rows), 10
    picture = tag(
        "image",
        href=f"data:image/png;base64,{_png(weights)}",
        **dict.fromkeys(("x", "y"), 12),
        **dict.fromkeys(("width", "height"), cell * T),
        preserveAspectRatio="none",
    )
    words = [repr(word)[1:-1][:2] for word in rows]
    middle = [12 + cell * (place + 0.5) for place in range(T)]
    side = [tag("text", word, x=0, y=y + 3) for word, y in zip(words, middle, strict=True)]
    top = [
        tag("text", word, x=x, y=8, text_anchor="middle")
        for word, x in zip(words, middle, strict=True)
    ]
    size = 12 + cell * T
    drawing = tag("svg", picture, *side, *top, viewBox=f"0 0 {size} {size}", role="img")
    return tag("figure", drawing, tag("figcaption", caption))


def _png(weights) -> str:
    """The weights as opacity of one blue, which is seen on white and on black alike."""
    import numpy as np
    from matplotlib.image import imsave

    opacity = np.asarray(weights, dtype=np.float64).clip(0, 1)
    colour = np.broadcast_to(np.array([68, 119, 255], np.uint8), (*opacity.shape, 3))
    pixels = np.dstack([colour, np.rint(255 * opacity).astype(np.uint8)])
    file = io.BytesIO()
    imsave(file, pixels, format="png")
    return base64.b64encode(file.getvalue()).decode()
