"""An answer as one page, for phones and desktops, light and dark. Needs no network and no script."""

import html
from collections.abc import Iterable, Sequence

from llmpilot.recommendation import phrases
from llmpilot.recommendation.answer import Answer, Forecast, Option
from llmpilot.recommendation.what_if import PriceCurve
from llmpilot.recommendation.what_if_plot import NOTHING, taken_services, what_if_svg

BAR_WIDTH, BAR_HEIGHT = 160, 18
NO_NETWORK = "default-src 'none'; style-src 'unsafe-inline'"
LONGEST_UNBROKEN = 30
"""Characters of an argument that fit on a line of a phone."""
MOST_OF_A_LIMIT = 2.5
"""Latencies beyond so many times their limit are drawn at the end of the bar."""


def page(answer: Answer, what_if: Sequence[PriceCurve] = ()) -> str:
    """Return the page, well-formed HTML; `what_if` are the curves to draw below the answer."""
    best = answer.recommended
    title = f"{answer.question['model']}: " + (
        "nothing is recommended" if best is None else phrases.taken(best)
    )
    if best is None:
        shown: tuple[Option, ...] = ()
        parts = [_nothing(answer)]
    else:
        shown = (best, *phrases.alternatives(answer))
        parts = [_best(best, answer), _latencies(best), _alternatives(shown, answer)]
    parts += [
        _commands(answer),
        _trust(answer),
        _what_if(what_if),
        _rest(answer, shown),
        _section("Notes", _list(answer.notes)) if answer.notes else "",
    ]
    asked = "".join(f"<p>{_text(sentence)}</p>" for sentence in phrases.asked(answer))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"/>'
        '<meta name="viewport" content="width=device-width, initial-scale=1"/>'
        '<meta name="color-scheme" content="light dark"/>'
        f'<meta http-equiv="Content-Security-Policy" content="{NO_NETWORK}"/>'
        f"<title>{_text(title)}</title><style>{STYLE}</style></head>\n"
        f"<body><header>{asked}</header>\n<main>\n{chr(10).join(part for part in parts if part)}\n</main>"
        "</body></html>\n"
    )


# --- the answer ------------------------------------------------------------------------------------------


def _best(best: Option, answer: Answer) -> str:
    figures = [
        *((figure, f"per {unit}") for figure, unit in phrases.prices(best, answer)),
        (phrases.probability(best.p_sla), "probability of keeping the SLA"),
    ]
    cells = "".join(
        f"<div><b>{_text(figure)}</b><span>{_text(unit)}</span></div>" for figure, unit in figures
    )
    return (
        f'<section class="answer"><h1>Take {_text(phrases.taken(best))}</h1>'
        f'<div class="figures">{cells}</div>'
        f"<p>{_text(phrases.pod_load(best))} {_text(phrases.binds(best))}</p></section>"
    )


def _latencies(best: Option) -> str:
    if not best.forecasts:
        return ""
    rows = [
        (
            f"<b>{_text(one.limit.label)}</b>" if one.limit.label == best.binding else _text(one.limit.label),
            _text(phrases.latency(one.expected_ms)),
            _text(phrases.latency_interval(one.interval_ms)),
            _text(phrases.share(one.expected_ms / one.limit.limit_ms)),
            _text(phrases.probability(one.kept)),
            _bar(one),
        )
        for one in best.forecasts
    ]
    head = ("limit", "expected", "80% interval", "of the limit", "kept with", "")
    key = '<p class="key">Bar: expected and 80% interval; the upright line is the limit.</p>'
    return _section("Predicted latencies", _table(head, rows) + key)


def _bar(one: Forecast) -> str:
    """Return a latency and its interval beside the limit, as a small picture."""
    limit = one.limit.limit_ms
    low, high = one.interval_ms or (one.expected_ms, one.expected_ms)
    most = min(MOST_OF_A_LIMIT, max(1.15, high / limit * 1.05))

    def place(ms: float) -> float:
        return round(min(ms / limit, most) / most * (BAR_WIDTH - 8) + 4, 1)

    middle = BAR_HEIGHT / 2
    over = " over" if one.expected_ms > limit else ""
    return (
        f'<svg class="bar" viewBox="0 0 {BAR_WIDTH} {BAR_HEIGHT}" aria-hidden="true">'
        f'<line class="track" x1="4" x2="{BAR_WIDTH - 4}" y1="{middle}" y2="{middle}"/>'
        f'<line class="interval{over}" x1="{place(low)}" x2="{place(high)}" y1="{middle}" y2="{middle}"/>'
        f'<circle class="expected{over}" cx="{place(one.expected_ms)}" cy="{middle}" r="4"/>'
        f'<line class="limit" x1="{place(limit)}" x2="{place(limit)}" y1="1" y2="{BAR_HEIGHT - 1}"/></svg>'
    )


def _alternatives(shown: Sequence[Option], answer: Answer) -> str:
    best, *others = shown
    if not others:
        return ""
    ordered = sorted(shown, key=lambda one: one.cost_per_hour or 0.0)
    rows = [
        (
            _text(phrases.service(one, answer)) + (" (taken)" if one is best else ""),
            f"{one.pods:,}",
            f"{one.cost_per_hour:,.2f}",
            _text(phrases.price_beside(one, best)),
            _text(phrases.probability(one.p_sla)),
            _text(phrases.nearest_limit(one)),
        )
        for one in ordered
    ]
    head = ("service", "pods", "$/hour", "difference", "P(SLA)", "nearest limit")
    chosen = f'<p class="key">{_text(phrases.sentence(f"Chosen: {phrases.rule(answer)}"))}</p>'
    table = _table(head, rows, marked=next(at for at, one in enumerate(ordered) if one is best))
    return _section(
        "Alternatives",
        f"<p>Cheaper but slower or less sure, or dearer but faster or surer.</p>{table}{chosen}",
    )


def _nothing(answer: Answer) -> str:
    reason = _text(phrases.sentence(answer.reason[:1].upper() + answer.reason[1:]))
    close = phrases.nearest(answer)
    misfit = None if close else phrases.nearest_misfit(answer)
    near = [phrases.idle(one, answer) for one in close]
    near += [] if misfit is None else [f"{phrases.service(misfit, answer)}: {misfit.reason}"]
    heading = "Nearest, with a pod that is nearly idle" if close else "Nearest"
    return (
        f'<section class="answer none"><h1>Nothing is recommended</h1><p>{reason}</p></section>'
        f"{_section(heading, _list(near)) if near else ''}"
        f"{_section('What would make it possible', _list(phrases.what_would_help(answer)))}"
    )


# --- the rest, how sure, and how to serve it -------------------------------------------------------------


def _rest(answer: Answer, shown: Sequence[Option]) -> str:
    folds = phrases.folds(answer, shown)
    details = []
    for one in folds:
        reasons = "".join(
            f"<li><b>{_text(phrases.service(option, answer))}</b> {_text(_in_full(option))}</li>"
            for option in one.options
        )
        details.append(
            f"<details><summary><b>{_text(one.gpus)}</b> {_text(one.text)}</summary>"
            f"<ul>{reasons}</ul></details>"
        )
    return _section("All others, by GPU type", "".join(details)) if details else ""


def _in_full(option: Option) -> str:
    if not option.feasible:
        return option.reason
    pods = f"{option.pods:,} pod{'s' * (option.pods != 1)}, {phrases.money(option.cost_per_hour)}/hour"
    kept = f"P(SLA) {phrases.probability(option.p_sla)}"
    return f"{pods}, {kept}, {phrases.nearest_limit(option)}: {option.reason}"


def _trust(answer: Answer) -> str:
    trust, own = answer.trust, phrases.measured(answer)
    reasons = [*trust.reasons, *([own] if own else [])]
    command = _command(answer.measurement.command) if answer.measurement.command else ""
    return _section(
        "How far to trust it",
        f'<p><b class="{trust.level}">Trust is {trust.level}:</b> '
        f"{_text(phrases.sentence(trust.sentence))}</p>"
        f"{_list(reasons) if reasons else ''}"
        f"<p>{_text(phrases.next_measurement(answer))}</p>{command}",
    )


def _commands(answer: Answer) -> str:
    if answer.serve:
        return _section("Serve it", f"<p>In each pod:</p>{_command(answer.serve)}")
    if answer.why_not_served:
        return _section("Serve it", f"<p>{_text(phrases.why_not_served(answer))}</p>")
    return ""


def _what_if(curves: Sequence[PriceCurve]) -> str:
    if not any(curve.points for curve in curves):
        return ""
    figures = []
    for curve in curves:
        if not curve.points:
            continue
        legend = "".join(
            f'<li><b class="dot" style="background:{one.colour}">{one.letter}</b> {_text(one.summary)}</li>'
            for one in taken_services(curve)
        )
        if any(point.option is None for point in curve.points):
            legend += f'<li><b class="cross">×</b> {NOTHING}</li>'
        figures.append(
            f'<figure>{what_if_svg(curve)}<figcaption><ul class="legend">{legend}</ul></figcaption></figure>'
        )
    key = '<p class="key">Between two points, the dearer of them is drawn.</p>'
    return _section(
        "If the load or a limit were different", f'<div class="curves">{"".join(figures)}</div>{key}'
    )


# --- pieces ----------------------------------------------------------------------------------------------


def _section(heading: str, content: str) -> str:
    return f"<section><h2>{_text(heading)}</h2>{content}</section>"


def _list(texts: Iterable[str]) -> str:
    return f"<ul>{''.join(f'<li>{_text(text)}</li>' for text in texts)}</ul>"


def _command(text: str) -> str:
    """Return a command line that breaks between its arguments, where they are not too long."""
    words = (
        f"<span>{html.escape(word)}</span>" if len(word) <= LONGEST_UNBROKEN else html.escape(word)
        for word in text.split(" ")
    )
    return f"<pre><code>{' '.join(words)}</code></pre>"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], marked: int | None = None) -> str:
    """Return a table of cells that are HTML already; on a phone each row is a block with its own names."""
    names = "".join(f'<th scope="col">{_text(name)}</th>' for name in head)
    lines = []
    for at, (first, *cells) in enumerate(rows):
        named = "".join(
            f'<td data-name="{_text(name)}">{cell}</td>' for name, cell in zip(head[1:], cells, strict=True)
        )
        style = ' class="taken"' if at == marked else ""
        lines.append(f'<tr{style}><th scope="row">{first}</th>{named}</tr>')
    return f"<table><thead><tr>{names}</tr></thead><tbody>{''.join(lines)}</tbody></table>"


def _text(text: str) -> str:
    return html.escape(text.replace(" <= ", " ≤ "))


STYLE = """
:root { color-scheme: light dark; --ink: #1a202c; --soft: #5a6577; --paper: #fff; --raised: #f4f6f9;
  --line: #dde3ea; --accent: #15803d; --warn: #b45309; --bad: #b91c1c; --bar: #2563eb; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6eaf0; --soft: #9aa6b6; --paper: #12161c;
  --raised: #1c222b; --line: #323b47; --accent: #4ade80; --warn: #fbbf24; --bad: #f87171; --bar: #7ba7ff; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 62rem; padding: 1rem; color: var(--ink); background: var(--paper);
  font: 1rem/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; overflow-wrap: anywhere; }
header p { margin: 0; color: var(--soft); font-size: .9rem; }
h1 { margin: 0; font-size: 1.4rem; line-height: 1.25; }
h2 { margin: 0 0 .4rem; font-size: 1.05rem; }
section { margin-top: 1.6rem; }
section p, section ul { margin: .4rem 0; }
ul { padding-left: 1.2rem; }
.answer { margin-top: 1rem; padding: 1rem; border-left: 4px solid var(--accent); background: var(--raised);
  border-radius: 4px; }
.answer.none { border-color: var(--warn); }
.answer p { margin: .8rem 0 0; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(8rem, 1fr)); gap: .6rem 1rem;
  margin-top: .8rem; }
.figures b { display: block; font-size: 1.35rem; line-height: 1.2; font-variant-numeric: tabular-nums; }
.figures span, .key { color: var(--soft); font-size: .85rem; }
table { border-collapse: collapse; width: 100%; font-size: .95rem; font-variant-numeric: tabular-nums; }
thead th { color: var(--soft); font-weight: 400; font-size: .85rem; }
th, td { padding: .35rem .5rem; text-align: right; border-bottom: 1px solid var(--line); }
th:first-child { text-align: left; padding-left: 0; font-weight: 400; }
tbody .taken, tbody .taken th { font-weight: 700; }
.bar { width: 160px; height: 18px; display: block; margin-left: auto; }
.bar line, .bar circle { stroke-linecap: round; }
.track { stroke: var(--line); stroke-width: 2; }
.interval { stroke: var(--bar); stroke-width: 5; opacity: .45; }
.expected { fill: var(--bar); }
.interval.over { stroke: var(--bad); }
.expected.over { fill: var(--bad); }
.limit { stroke: var(--ink); stroke-width: 2; }
.high { color: var(--accent); }
.medium { color: var(--warn); }
.low { color: var(--bad); }
pre { margin: .4rem 0; padding: .7rem .8rem; background: var(--raised); border: 1px solid var(--line);
  border-radius: 4px; white-space: pre-wrap; font-size: .85rem; }
pre span { white-space: nowrap; }
code { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
details { border-bottom: 1px solid var(--line); }
summary { padding: .45rem 0; cursor: pointer; }
details ul { margin: 0 0 .7rem; font-size: .9rem; }
.curves { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 22rem), 1fr));
  gap: 1.2rem 2rem; }
figure { margin: 0; }
figure svg { display: block; width: 100%; max-width: 32rem; }
figure text { fill: var(--soft); font-size: 10px; }
figure .letter { fill: #fff; font-size: 8.5px; font-weight: 700; }
.grid { stroke: var(--line); stroke-width: .7; }
.steps { fill: none; stroke: var(--soft); stroke-width: 1.5; }
.asked { stroke: var(--ink); stroke-dasharray: 4 3; }
.nothing { stroke: var(--bad); stroke-width: 1.8; fill: none; }
.legend { list-style: none; padding: 0; font-size: .85rem; }
.dot, .cross { display: inline-block; width: 1.25rem; line-height: 1.25rem; border-radius: 50%; color: #fff;
  text-align: center; font-size: .75rem; }
.cross { color: var(--bad); font-size: 1.1rem; }
@media (max-width: 40rem) {
  thead { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
  table, tbody { display: block; }
  tbody tr { display: grid; grid-template-columns: 1fr 1fr; gap: .3rem 1rem; padding: .6rem 0;
    border-bottom: 1px solid var(--line); }
  tbody th, tbody td { display: block; padding: 0; border: 0; }
  tbody th { grid-column: 1 / -1; font-weight: 600; }
  tbody td { text-align: left; }
  tbody td::before { content: attr(data-name) " "; display: block; color: var(--soft); font-size: .8rem;
    font-weight: 400; line-height: 1.2; }
  tbody td:empty { display: none; }
  .bar { margin: .2rem 0; }
}
@media print { body { max-width: none; } pre, .answer { break-inside: avoid; } }
"""
