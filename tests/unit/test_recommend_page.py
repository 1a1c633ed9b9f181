"""The page of a recommendation: well-formed, escaped, complete, and without a need for any network."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from matplotlib.figure import Figure
from sample_answers import ANSWERS, gpu, option, price_curves

from llmpilot.recommendation.page import page
from llmpilot.recommendation.what_if import Point, PriceCurve
from llmpilot.recommendation.what_if_plot import HEIGHT, WIDTH, _stretches, plot_what_if, taken_services

NONE = PriceCurve("users", 5.0, (Point(1.0, None), Point(5.0, None), Point(9.0, None)))


def parsed(text: str) -> ElementTree.Element:
    """Return the page's elements; what is not closed or not escaped is an error."""
    return ElementTree.fromstring(text.removeprefix("<!doctype html>"))


def text_of(element: ElementTree.Element) -> str:
    return " ".join("".join(element.itertext()).split())


def figures_of(element: ElementTree.Element, *names: str) -> Iterator[float]:
    for one in element.iter():
        yield from (float(one.attrib[name]) for name in names if name in one.attrib)


@pytest.mark.parametrize("name", ANSWERS)
def test_the_page_is_well_formed_and_asks_for_nothing(name: str) -> None:
    text = page(ANSWERS[name](), (*price_curves(), NONE))
    root = parsed(text)
    tags = {one.tag for one in root.iter()}
    assert not tags & {"script", "link", "img", "iframe", "object", "use", "image"}
    assert not {key for one in root.iter() for key in one.attrib if re.match("src|href|on", key)}
    style = root.findtext("head/style")
    assert style is not None
    assert not re.search(r"url\(|@import", style)
    assert "prefers-color-scheme: dark" in style
    metas = {one.get("name") or one.get("http-equiv"): one.get("content") for one in root.iter("meta")}
    assert metas["viewport"] == "width=device-width, initial-scale=1"
    assert str(metas["Content-Security-Policy"]).startswith("default-src 'none'")


def test_names_are_escaped() -> None:
    root = parsed(page(ANSWERS["long_names"]()))
    assert "<script>alert('x')</script>&a_very_long" in text_of(root)
    assert "<b>neither</b>" in text_of(root)


@pytest.mark.parametrize("name", ANSWERS)
def test_every_reason_is_there_in_full(name: str) -> None:
    answer = ANSWERS[name]()
    root = parsed(page(answer))
    text = text_of(root)
    told = [one for one in answer.options if one is not answer.recommended and one not in answer.alternatives]
    assert all(one.reason.replace(" <= ", " ≤ ") in text for one in told)
    assert len(root.findall(".//details")) == len({one.profile.name for one in told})
    assert answer.trust.sentence in text
    assert all(note in text for note in answer.notes)


def test_what_to_take_is_said_with_its_prices_and_its_limits() -> None:
    answer = ANSWERS["winner"]()
    root = parsed(page(answer))
    assert root.findtext(".//h1") == "Take 2 pods of 1 x H100 in fp8, vLLM"
    text = text_of(root)
    for said in ("$3.98per hour", "$2,905per month", "$0.26per million output tokens", "93%probability"):
        assert said in text
    assert "TTFT p95 ≤ 1000 ms612 ms428 to 887 ms61%95%" in text
    assert "1 x H100, fp8 (taken)" in text
    assert [text_of(one) for one in root.iter("code")] == [answer.serve, answer.measurement.command]
    # Every cell names its column, for phones.
    assert all(one.get("data-name") is not None for one in root.iter("td"))


def test_where_nothing_is_recommended_it_says_why() -> None:
    root = parsed(page(ANSWERS["fits_nowhere"]()))
    assert root.findtext(".//h1") == "Nothing is recommended"
    text = text_of(root)
    assert "fits on none of the 11 services" in text
    assert "= -737.0 GB for the KV cache" in text
    assert "What would make it possible" in text


def test_every_point_of_a_curve_is_drawn_within_the_picture() -> None:
    curves = price_curves()
    root = parsed(page(ANSWERS["winner"](), curves))
    drawn = root.findall(".//figure/svg")
    assert len(drawn) == len(curves)
    for svg, curve in zip(drawn, curves, strict=True):
        feasible = [point for point in curve.points if point.option is not None]
        assert len(svg.findall(".//circle")) == len(feasible)
        assert len(svg.findall("path")) == len(curve.points) - len(feasible)
        assert all(0 <= x <= WIDTH for x in figures_of(svg, "cx", "x1", "x2", "x"))
        assert all(0 <= y <= HEIGHT for y in figures_of(svg, "cy", "y1", "y2", "y"))
    assert "20 requests/s: 2 pods of 1 x H100 in fp8, vLLM, $3.98 an hour, P(SLA) 93%" in text_of(drawn[0])
    assert "400 TTFT p95 [ms]: nothing keeps the SLA" in text_of(drawn[1])


def test_services_are_lettered_in_the_order_in_which_they_are_taken() -> None:
    by_load, _ = price_curves()
    assert [(one.letter, one.summary) for one in taken_services(by_load)] == [
        ("A", "1 x L40S, fp8: 1 to 2 pods, $0.79 to $1.58 an hour"),
        ("B", "1 x H100, fp8: 1 to 6 pods, $1.99 to $11.94 an hour"),
        ("C", "1 x B200, fp8: 3 to 6 pods, $17.94 to $35.88 an hour"),
    ]


def test_between_two_points_the_dearer_is_drawn_and_nothing_beside_a_gap() -> None:
    one, two = option(gpu("h100"), "fp8", 1), option(gpu("h100"), "fp8", 2)
    rising = [Point(1.0, one), Point(2.0, two)]
    assert list(_stretches(rising)) == [[(1.0, 1.99), (1.0, 3.98), (2.0, 3.98)]]
    falling = [Point(1.0, two), Point(2.0, one)]
    assert list(_stretches(falling)) == [[(1.0, 3.98), (2.0, 3.98), (2.0, 1.99)]]
    gap = [Point(1.0, one), Point(2.0, None), Point(3.0, one), Point(4.0, one)]
    assert list(_stretches(gap)) == [[(3.0, 1.99), (4.0, 1.99), (4.0, 1.99)]]


@pytest.mark.parametrize("curves", [price_curves(), (NONE,), (*price_curves(), NONE)])
def test_the_plot_is_a_png(curves: tuple[PriceCurve, ...], tmp_path: Path) -> None:
    plot_what_if(curves, tmp_path / "new" / "what_if.png", "a model at $ and $$")
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["what_if.png"]
    assert (tmp_path / "new" / "what_if.png").read_bytes().startswith(b"\x89PNG\r\n")


def test_there_is_a_panel_for_each_curve_and_none_besides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    panels = []
    save = Figure.savefig

    def saved(figure: Figure, *arguments: Any, **options: Any) -> None:
        panels.append(len(figure.axes))
        save(figure, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", saved)
    for n in (1, 2, 3):
        plot_what_if([NONE] * n, tmp_path / "what_if.png", "three")
    assert panels == [1, 2, 3]
