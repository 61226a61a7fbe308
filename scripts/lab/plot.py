# SPDX-License-Identifier: GPL-2.0-only
"""Draws line and bar charts as SVG, for light and dark surroundings alike: on white."""

import dataclasses
import math
from xml.sax.saxutils import escape

COLOURS = ["#0b5fa5", "#c2410c", "#15803d", "#7e22ce", "#52525b"]
WIDTH, HEIGHT = 560, 360
LEFT, RIGHT, TOP, BOTTOM = 78, 16, 34, 84


@dataclasses.dataclass
class Panel:
    """A chart: of lines, {label: [(x, y), ...]}, or, with categories, of bars {label: [y, ...]}."""

    title: str
    x_label: str
    y_label: str
    series: dict
    categories: list = dataclasses.field(default_factory=list)
    # {position: text}; the horizontal axis is logarithmic where they are.
    x_ticks: dict = dataclasses.field(default_factory=dict)
    logarithmic: bool = False
    # A horizontal line to compare with.
    mark: float = None


def round_up(value):
    """Returns a round number that is no less."""
    scale = 10 ** math.floor(math.log10(value))
    return next(step * scale for step in (1, 1.5, 2, 3, 4, 5, 6, 8, 10) if step * scale >= value)


def short(value):
    """Returns a number as a tick of an axis shows it."""
    for size, suffix in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if abs(value) >= size:
            return f"{value / size:g}{suffix}"
    return f"{value:g}"


class Scale:
    """Turns values into positions."""

    def __init__(self, low, high, start, end, logarithmic):
        self.of = math.log10 if logarithmic else float
        self.low, self.high = self.of(low), self.of(high)
        self.start, self.end = start, end

    def __call__(self, value):
        share = (self.of(value) - self.low) / ((self.high - self.low) or 1)
        return self.start + share * (self.end - self.start)


def text(x, y, words, size=12, anchor="middle", extra=""):
    """Returns a text."""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}"{extra}>'
        f"{escape(words)}</text>"
    )


def line(x1, y1, x2, y2, colour, extra=""):
    """Returns a line."""
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}"{extra}/>'
    )


def vertical(panel, values):
    """Returns the scale of the vertical axis and its ticks."""
    if panel.logarithmic:
        low = math.floor(math.log10(min(values)))
        high = max(math.ceil(math.log10(max(values))), low + 1)
        ticks = [10**power for power in range(low, high + 1)]
    else:
        top = round_up(max([*values, panel.mark or 0]))
        ticks = [top * part / 5 for part in range(6)]
    return Scale(ticks[0], ticks[-1], HEIGHT - BOTTOM, TOP, panel.logarithmic), ticks


def legend(labels):
    """Returns the legend, below the chart."""
    step = (WIDTH - LEFT - RIGHT) / len(labels)
    parts = []
    for number, label in enumerate(labels):
        x, y = LEFT + number * step, HEIGHT - 14
        colour = COLOURS[number % len(COLOURS)]
        parts.append(f'<rect x="{x:.1f}" y="{y - 9}" width="12" height="10" fill="{colour}"/>')
        parts.append(text(x + 17, y, label, 12, "start"))
    return parts


def bars(panel, y_of):
    """Returns the bars with their values above them, and the names of what they are of."""
    parts = []
    group = (WIDTH - LEFT - RIGHT) / len(panel.categories)
    width = group * 0.72 / len(panel.series)
    for place, category in enumerate(panel.categories):
        middle = LEFT + group * (place + 0.5)
        for row, words in enumerate(category.split("\n")):
            parts.append(text(middle, HEIGHT - BOTTOM + 16 + 13 * row, words, 11))
        for number, values in enumerate(panel.series.values()):
            value = values[place]
            if value is None:
                continue
            x = middle + (number - len(panel.series) / 2) * width
            y = y_of(value)
            parts.append(
                f'<rect x="{x:.1f}" y="{y:.1f}" width="{width * 0.94:.1f}"'
                f' height="{HEIGHT - BOTTOM - y:.1f}" fill="{COLOURS[number]}"/>'
            )
            parts.append(text(x + width / 2, y - 4, f"{value:.3f}", 10))
    return parts


def lines(panel, y_of):
    """Returns the lines with their points, and the ticks of the horizontal axis."""
    parts = []
    places = [x for points in panel.series.values() for x, _ in points]
    x_of = Scale(min(places), max(places), LEFT + 14, WIDTH - RIGHT - 14, bool(panel.x_ticks))
    free = 0
    for x in sorted(set(places)):
        parts.append(line(x_of(x), HEIGHT - BOTTOM, x_of(x), HEIGHT - BOTTOM + 4, "#333"))
        label = panel.x_ticks.get(x, f"{x:g}")
        if x_of(x) >= free:
            parts.append(text(x_of(x), HEIGHT - BOTTOM + 17, label, 11))
            free = x_of(x) + 7 * len(label) + 6
    for number, points in enumerate(panel.series.values()):
        colour = COLOURS[number % len(COLOURS)]
        places = [(x_of(x), y_of(y)) for x, y in points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        # Lines that cover each other are both to be seen.
        dash = f' stroke-dasharray="{7 - number},{number * 2}"' if number else ""
        parts.append(
            f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"{dash}/>'
        )
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.2" fill="{colour}"/>' for x, y in places]
    return parts


def values_of(panel):
    """Returns all values that are drawn."""
    rows = panel.series.values()
    if panel.categories:
        return [value for row in rows for value in row if value is not None]
    return [value for points in rows for _, value in points]


def chart(panel):
    """Returns a panel's elements, or nothing if it has no values."""
    values = values_of(panel)
    if not values:
        return []
    y_of, ticks = vertical(panel, values)
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts = [text(middle, 20, panel.title, 14, extra=' font-weight="bold"')]
    for tick in ticks:
        parts.append(line(LEFT, y_of(tick), WIDTH - RIGHT, y_of(tick), "#ddd"))
        parts.append(text(LEFT - 7, y_of(tick) + 4, short(tick), 11, "end"))
    parts += bars(panel, y_of) if panel.categories else lines(panel, y_of)
    if panel.mark is not None:
        y = y_of(panel.mark)
        parts.append(line(LEFT, y, WIDTH - RIGHT, y, "#333", ' stroke-dasharray="2,3"'))
    parts.append(line(LEFT, TOP, LEFT, HEIGHT - BOTTOM, "#333"))
    parts.append(line(LEFT, HEIGHT - BOTTOM, WIDTH - RIGHT, HEIGHT - BOTTOM, "#333"))
    parts.append(text(middle, HEIGHT - 38, panel.x_label))
    across = (TOP + HEIGHT - BOTTOM) / 2
    parts.append(text(18, across, panel.y_label, extra=f' transform="rotate(-90 18 {across:.1f})"'))
    return parts + legend(list(panel.series))


def svg(panels, columns):
    """Returns a picture of the panels, row by row."""
    rows = math.ceil(len(panels) / columns)
    width, height = columns * WIDTH, rows * HEIGHT
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}"'
        f' width="{width}" height="{height}" font-family="sans-serif" fill="#111">',
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
    ]
    for number, panel in enumerate(panels):
        x, y = number % columns * WIDTH, number // columns * HEIGHT
        parts += [f'<g transform="translate({x} {y})">', *chart(panel), "</g>"]
    return "\n".join([*parts, "</svg>"]) + "\n"
