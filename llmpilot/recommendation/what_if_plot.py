"""How the price moves with the load and with each limit, drawn: as PNG, and as SVG for the page.

Between two points the dearer of them is drawn: what lies between was not asked. A point carries a letter for
the service that is taken there.
"""

import html
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import ceil, floor, log10
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from llmpilot.files import replacing
from llmpilot.recommendation import phrases
from llmpilot.recommendation.answer import Option
from llmpilot.recommendation.what_if import Point, PriceCurve

COLOURS = ("#2563eb", "#c2410c", "#15803d", "#7e22ce", "#be123c", "#0f766e", "#854d0e", "#475569")
"""Readable with white letters on them, on a light page and on a dark one."""
LOGARITHMIC_FROM = 8.0
"""Prices that differ by more are drawn on a logarithmic axis."""
NOTHING = "nothing keeps the SLA"
Place = tuple[float, float]


@dataclass(frozen=True)
class Taken:
    """A service that is taken somewhere on a curve, and its letter."""

    letter: str
    colour: str
    label: str
    points: tuple[Point, ...]

    @property
    def summary(self) -> str:
        """`1 x H100, fp8: 1 to 4 pods, $1.99 to $7.96 an hour`."""
        options = [point.option for point in self.points if point.option is not None]
        pods = _range([f"{one.pods:,}" for one in options])
        price = _range([phrases.money(one.cost_per_hour) for one in options])
        return f"{self.label}: {pods} pod{'s' * (pods != '1')}, {price} an hour"


def taken_services(curve: PriceCurve) -> tuple[Taken, ...]:
    """Return the services that are taken along a curve, in the order of their first point."""
    found: dict[tuple[str, str, str], list[Point]] = {}
    for point in curve.points:
        if point.option is not None:
            found.setdefault(_key(point.option), []).append(point)
    engines = {engine for engine, _, _ in found}
    return tuple(
        Taken(
            ascii_uppercase[at % 26],
            COLOURS[at % len(COLOURS)],
            f"{profile}, {precision}"
            + (f", {phrases.ENGINES.get(engine, engine)}" if len(engines) > 1 else ""),
            tuple(points),
        )
        for at, ((engine, precision, profile), points) in enumerate(found.items())
    )


def _key(option: Option) -> tuple[str, str, str]:
    return option.engine, option.precision, option.profile.label


def _range(texts: Sequence[str]) -> str:
    """Return `1 to 4` of the least and the most, which stand in the order of a rising or falling price."""
    first, last = sorted((texts[0], texts[-1]), key=lambda text: float(text.strip("$").replace(",", "")))
    return first if first == last else f"{first} to {last}"


def _priced(points: Sequence[Point]) -> list[tuple[float, float | None]]:
    return [(one.value, None if one.option is None else one.option.cost_per_hour) for one in points]


def _stretches(points: Sequence[Point]) -> Iterator[list[Place]]:
    """Yield the corners of each unbroken line of steps, as (value, $ per hour)."""
    corners: list[Place] = []
    for (value, price), (next_value, next_price) in pairwise(_priced(points)):
        if price is None or next_price is None:
            if corners:
                yield corners
            corners = []
            continue
        corners = corners or [(value, price)]
        corners.append((value, next_price) if next_price > price else (next_value, price))
        corners.append((next_value, next_price))
    if corners:
        yield corners


def _prices(curve: PriceCurve) -> list[float]:
    return [price for _, price in _priced(curve.points) if price is not None]


def _is_logarithmic(prices: Sequence[float]) -> bool:
    return bool(prices) and max(prices) > LOGARITHMIC_FROM * min(prices)


# --- PNG -------------------------------------------------------------------------------------------------


def plot_what_if(curves: Sequence[PriceCurve], path: Path, title: str) -> None:
    """Write the curves as PNG, a panel each."""
    from matplotlib.figure import Figure

    columns = min(2, max(1, len(curves)))
    rows = max(1, ceil(len(curves) / columns))
    figure = Figure(figsize=(7 * columns, 4.6 * rows), layout="constrained")
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for curve, axes in zip(curves, panels, strict=False):
        _panel(axes, curve)
    for axes in panels[len(curves) :]:
        axes.remove()
    figure.suptitle(_plain(title))
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110, metadata={"Software": None})


def _panel(axes: Any, curve: PriceCurve) -> None:
    prices = _prices(curve)
    for corners in _stretches(curve.points):
        axes.plot(*zip(*corners, strict=True), color="#94a3b8", zorder=1)
    for one in taken_services(curve):
        places = [(point.value, _price(point)) for point in one.points]
        label = _plain(f"{one.letter}  {one.summary}")
        axes.scatter(*zip(*places, strict=True), s=110, color=one.colour, zorder=2, label=label)
        for place in places:
            axes.annotate(
                one.letter, place, color="white", size=7, weight="bold", ha="center", va="center_baseline"
            )
    top = max(prices, default=1.0)
    nothing = [value for value, price in _priced(curve.points) if price is None]
    if nothing:
        axes.scatter(nothing, [top] * len(nothing), marker="x", color="#b91c1c", label=NOTHING)
    axes.axvline(curve.asked, color="black", linestyle="--", linewidth=1, zorder=0, label="as asked")
    axes.set_xscale("log")
    ticks = _log_ticks(curve.points[0].value, curve.points[-1].value)
    axes.set_xticks(ticks, [f"{tick:,.10g}" for tick in ticks])
    axes.minorticks_off()
    if _is_logarithmic(prices):
        axes.set_yscale("log")
        y_ticks = _log_ticks(min(prices), top)
        axes.set_yticks(y_ticks, [f"{tick:,.10g}" for tick in y_ticks])
        axes.minorticks_off()
    else:
        axes.set_ylim(0, 1.12 * top)
    axes.set(xlabel=curve.figure, ylabel="$ per hour")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7.5, loc="upper center", bbox_to_anchor=(0.5, -0.16), frameon=False)


def _plain(text: str) -> str:
    """Return text in which matplotlib sees no formula."""
    return text.replace("$", r"\$")


def _price(point: Point) -> float:
    assert point.option is not None
    assert point.option.cost_per_hour is not None
    return point.option.cost_per_hour


# --- SVG -------------------------------------------------------------------------------------------------

WIDTH, HEIGHT = 360, 240
"""A phone's: text is readable there, and grows with the picture."""
LEFT, RIGHT, TOP, BOTTOM = 46, 14, 26, 36
DOT = 6.5


@dataclass(frozen=True)
class _Axis:
    """From values to places in a picture, between two ends."""

    low: float
    high: float
    start: float
    end: float
    logarithmic: bool

    def place(self, value: float) -> float:
        low, high, here = (
            (log10(self.low), log10(self.high), log10(value))
            if self.logarithmic
            else (self.low, self.high, value)
        )
        return self.start + (self.end - self.start) * (here - low) / ((high - low) or 1.0)


def what_if_svg(curve: PriceCurve) -> str:
    """Return one curve as an SVG element, without a script or a reference to anything."""
    prices = _prices(curve)
    x, y = _axes(curve, prices)
    parts = [*_grid(x, y, prices), *_asked(curve, x)]
    for corners in _stretches(curve.points):
        line = " ".join(f"{x.place(value):.1f},{y.place(price):.1f}" for value, price in corners)
        parts.append(f'<polyline class="steps" points="{line}"/>')
    for value, price in _priced(curve.points):
        if price is None:
            at, top, arm = x.place(value), y.end + 2.0, 4.0
            parts.append(
                f'<path class="nothing" d="M{at - arm:.1f} {top - arm:.1f}l{2 * arm} {2 * arm}'
                f'm0 {-2 * arm}l{-2 * arm} {2 * arm}">'
                f"<title>{_said(f'{value:,.10g} {curve.figure}: {NOTHING}')}</title></path>"
            )
    for one in taken_services(curve):
        parts += [
            _dot(point, one, curve, (x.place(point.value), y.place(_price(point)))) for point in one.points
        ]
    parts.append(
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 4}" text-anchor="middle">'
        f'{_said(curve.figure)}</text><text x="2" y="11">$ per hour</text>'
    )
    name = _said(f"Price per hour over {curve.figure}")
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{name}">{"".join(parts)}</svg>'


def _axes(curve: PriceCurve, prices: Sequence[float]) -> tuple[_Axis, _Axis]:
    values = [point.value for point in curve.points]
    x = _Axis(min(values), max(values), LEFT + DOT + 2, WIDTH - RIGHT - DOT, True)
    top, bottom = TOP + DOT + 2, HEIGHT - BOTTOM
    if _is_logarithmic(prices):
        return x, _Axis(min(prices), max(prices), bottom - DOT - 2, top, True)
    return x, _Axis(0.0, max(prices, default=1.0), bottom, top, False)


def _grid(x: _Axis, y: _Axis, prices: Sequence[float]) -> Iterator[str]:
    bottom = HEIGHT - BOTTOM
    for tick in _log_ticks(x.low, x.high):
        at = x.place(tick)
        yield f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{bottom}"/>'
        yield f'<text x="{at:.1f}" y="{bottom + 13}" text-anchor="middle">{tick:,.10g}</text>'
    if not prices:
        return
    for tick in _log_ticks(y.low, y.high) if y.logarithmic else _even_ticks(y.high):
        at = y.place(tick)
        yield f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>'
        yield f'<text x="{LEFT - 5}" y="{at + 3.5:.1f}" text-anchor="end">{tick:,.10g}</text>'


def _asked(curve: PriceCurve, x: _Axis) -> tuple[str, str]:
    at = x.place(min(max(curve.asked, x.low), x.high))
    return (
        f'<line class="asked" x1="{at:.1f}" x2="{at:.1f}" y1="{TOP - 8}" y2="{HEIGHT - BOTTOM}"/>',
        f'<text x="{at:.1f}" y="{TOP - 12}" text-anchor="middle">as asked: {curve.asked:,.10g}</text>',
    )


def _dot(point: Point, one: Taken, curve: PriceCurve, place: Place) -> str:
    option = point.option
    assert option is not None
    said = _said(
        f"{point.value:,.10g} {curve.figure}: {phrases.taken(option)}, "
        f"{phrases.money(option.cost_per_hour)} an hour, P(SLA) {phrases.probability(option.p_sla)}"
    )
    across, down = place
    return (
        f"<g><title>{said}</title>"
        f'<circle cx="{across:.1f}" cy="{down:.1f}" r="{DOT}" fill="{one.colour}"/>'
        f'<text class="letter" x="{across:.1f}" y="{down + 3:.1f}" text-anchor="middle">{one.letter}</text>'
        "</g>"
    )


def _log_ticks(low: float, high: float) -> list[float]:
    """Return 1, 2, 5 times powers of ten between two values, fewer where there are many."""
    powers = range(floor(log10(low)) - 1, ceil(log10(high)) + 1)
    for steps in ((1, 2, 5), (1,)):
        ticks = [step * 10.0**power for power in powers for step in steps]
        within = [tick for tick in ticks if low * (1 - 1e-9) <= tick <= high * (1 + 1e-9)]
        if len(within) <= 8:
            break
    return within or [low]


def _even_ticks(high: float) -> list[float]:
    """Return from three to six round values from 0 on."""
    rough = high / 4
    power = 10.0 ** floor(log10(rough))
    step = next(one * power for one in (1, 2, 2.5, 5, 10) if one * power >= rough * 0.999)
    return [step * at for at in range(int(high / step + 1e-9) + 1)]


def _said(text: str) -> str:
    return html.escape(text)
