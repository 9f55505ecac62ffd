"""The history as one HTML page: inline SVG, no script, nothing from elsewhere; readable in light and dark."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from html import escape

from .charts import Chart, Line, Span, figures, marks, numbers, slots, ticks

#: The drawing, and the margins for the labels of its axes, in units of its own.
WIDTH, HEIGHT = 640, 210
LEFT, RIGHT, TOP, BOTTOM = 52, 20, 24, 26
#: As many points as a line has at most: one for each quarter of an hour of 7 days.
MOST = 672
#: Colours that are told apart by colour-blind people, too (Okabe and Ito), by day and by night.
LIGHT = ("#0072b2", "#d55e00", "#cc79a7", "#767676", "#009e73", "#8a6d00")
DARK = ("#56b4e9", "#ff8c42", "#e5a5c8", "#a0a0a0", "#2fd0a0", "#f0e442")
#: What went well is green, wherever it stands.
OF_STATES = {"Completed": 4, "Failed": 1, "Crashed": 2, "Cancelled": 3}

STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1c1c1c; --faint: #5f5f5f; --rule: #e2e2e2; --gap: #efefef; %s }
@media (prefers-color-scheme: dark) {
  :root { --paper: #14171a; --ink: #e8e8e8; --faint: #a3a3a3; --rule: #2f3439; --gap: #23272b; %s }
}
body { margin: 0 auto; max-width: 1360px; padding: 1.5rem; background: var(--paper); color: var(--ink);
  font: 15px/1.45 system-ui, sans-serif; }
h1 { font-size: 1.4rem; margin: 0; } h2 { font-size: 1rem; margin: 0; } p { margin: .3rem 0; color: var(--faint); }
main { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%%, 480px), 1fr)); gap: 1.8rem 2.5rem;
  margin-top: 1.5rem; }
section p { font-size: .85rem; }
svg { display: block; width: 100%%; height: auto; }
svg text { fill: var(--faint); font-size: 12px; }
svg .rule { stroke: var(--rule); } svg .gap { fill: var(--gap); }
svg path { fill: none; stroke-width: 1.6; stroke-linejoin: round; stroke-linecap: round; }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; margin-left: 3rem; }
th { font-weight: 400; color: var(--faint); } th, td { padding: 0 .9rem 0 0; text-align: right; }
th:first-child, td:first-child, td:last-child { text-align: left; }
td:first-child { overflow-wrap: anywhere; } td:last-child { white-space: nowrap; padding: 0; }
@media (max-width: 600px) { table { margin: 0; } }
i { display: inline-block; width: .9rem; height: .25rem; margin-right: .5rem; vertical-align: middle; }
"""


def _colours(values: Sequence[str]) -> str:
    return " ".join(f"--c{index}: {value};" for index, value in enumerate(values))


def path(values: Sequence[float | None], top: float) -> str:
    """The outline of a line, for the `d` of an SVG path; it is broken where a value is missing.

    Args:
        values: equally far from one another over the whole width.
        top: the value at the upper edge; the lower is 0.
    """
    wide, high = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
    parts, drawing = [], False
    for index, value in enumerate(values):
        if value is None:
            drawing = False
            continue
        x = LEFT + wide * (index + 0.5) / len(values)
        y = TOP + high * (1 - min(value / top, 1))
        alone = not drawing and (index + 1 == len(values) or values[index + 1] is None)
        # One by itself is a dash.
        parts.append(f"M{x - 2:.1f} {y:.1f}h4" if alone else f"{'L' if drawing else 'M'}{x:.1f} {y:.1f}")
        drawing = True
    return "".join(parts)


def place(at: float, shown: Span) -> float:
    """Where a moment is on the axis of time."""
    share = (at - shown.begin) / max(shown.end - shown.begin, 1.0)
    return LEFT + (WIDTH - LEFT - RIGHT) * min(max(share, 0.0), 1.0)


def mark(at: int) -> str:
    """The label of a moment: midnight is a day."""
    moment = datetime.fromtimestamp(at, UTC)
    return f"{moment:%a} {moment.day}" if at % 86400 == 0 else f"{moment:%H:%M}"


def colour(line: Line, index: int) -> str:
    """The colour of a line, which is the index-th of its chart."""
    return f"var(--c{OF_STATES.get(line.name, index % len(LIGHT))})"


def drawing(chart: Chart, shown: Span) -> str:
    """The SVG of a chart."""
    scale = ticks(chart.highest(*chart.lines))
    low, high = HEIGHT - BOTTOM, HEIGHT - TOP - BOTTOM
    parts = []
    for begin, end in shown.gaps:
        x, until = place(begin, shown), place(end, shown)
        parts.append(f'<rect class="gap" x="{x:.1f}" y="{TOP}" width="{until - x:.1f}" height="{high}"/>')
    for value, label in zip(scale, numbers(scale), strict=True):
        y = low - high * value / scale[-1]
        parts.append(f'<line class="rule" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{label}</text>')
    for at in marks(shown):
        x = place(at, shown)
        parts.append(f'<line class="rule" x1="{x:.1f}" x2="{x:.1f}" y1="{low}" y2="{low + 5}"/>')
        parts.append(f'<text x="{x:.1f}" y="{low + 18}" text-anchor="middle">{mark(at)}</text>')
    parts.append(f'<text x="0" y="12">{escape(chart.unit)}</text>')
    parts.append(f'<text x="0" y="{low + 18}">UTC</text>')
    for index, line in enumerate(chart.lines):
        outline = path(slots(line.points, shown, MOST), scale[-1])
        parts.append(f'<path d="{outline}" style="stroke: {colour(line, index)}"/>')
    words = escape(f"{chart.title} over time; the table below has its figures", quote=True)
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{words}">{"".join(parts)}</svg>'


def row(line: Line, index: int) -> str:
    """The figures of a line."""
    cells = "".join(f"<td>{one}</td>" for one in figures(line))
    swatch = f'<i style="background: {colour(line, index)}"></i>'
    return f"<tr><td>{swatch}{escape(line.name)}</td>{cells}<td>{escape(line.unit)}</td></tr>"


def section(chart: Chart, shown: Span) -> str:
    """A chart, its figures, and what one has to know to read it."""
    rows = "".join(row(line, index) for index, line in enumerate(chart.lines))
    note = f"<p>{escape(chart.note)}</p>" if chart.note else ""
    return (
        f"<section><h2>{escape(chart.title)}</h2>{note}{drawing(chart, shown)}"
        f"<table><tr><th></th><th>min</th><th>now</th><th>max</th><th></th></tr>{rows}</table></section>"
    )


def page(title: str, summary: str, charts: Sequence[Chart], shown: Span) -> str:
    """The whole page.

    Args:
        summary: since when there are samples, or that there are none.
    """
    style = STYLE % (_colours(LIGHT), _colours(DARK))
    sections = "\n".join(section(chart, shown) for chart in charts)
    note = "<p>Each point is the highest of a quarter of an hour. Grey: no samples.</p>" if charts else ""
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{style}</style>
</head>
<body>
<h1>{escape(title)}</h1>
<p>{escape(summary)}</p>
{note}
<main>
{sections}
</main>
</body>
</html>
"""
