"""What task `recommend` prints: what to take, how near its limits it comes, what else, and how sure it is."""

import re
from collections.abc import Iterable

from rich.table import Table
from rich.text import Text

from llmpilot.console import out, say
from llmpilot.recommendation import phrases
from llmpilot.recommendation.answer import Answer, Option
from llmpilot.recommendation.what_if import PriceCurve
from llmpilot.secrets import redact

TEXT_WIDTH = 100
"""Longer lines of text are hard to read; tables and commands may be wider."""
NARROW = 72
TOGETHER = re.compile(
    r"(?<=\d) (?=(?:x|ms|s|GB|GPUs?|pods?|users?|tokens?|hours)\b)|(?<=\d x) |(?<=<=) | (?=<=)"
)
"""Spaces at which no line ends: within `2 x H100` and between figure and unit."""
NO_BREAK = "\ue000"
TRUST_STYLE = {"high": "green", "medium": "yellow", "low": "red"}


def show(answer: Answer) -> None:
    """Print the answer, readable from 60 columns on. Commands stand on one line each, to be copied."""
    for sentence in phrases.asked(answer):
        _print(sentence, style="dim")
    say()
    best = answer.recommended
    if best is None:
        _show_nothing(answer)
        shown: tuple[Option, ...] = ()
    else:
        _show_best(best, answer)
        shown = (best, *_show_alternatives(best, answer))
    _show_rest(answer, shown)
    _show_trust(answer)
    _show_measurement(answer)
    _show_serve(answer)
    if answer.notes:
        _heading("Notes")
        _bullets(answer.notes)


def show_what_if(curves: Iterable[PriceCurve]) -> None:
    """Print how the price moves with the load and with each limit: a row wherever it changes."""
    for curve in curves:
        _heading(f"What if: {curve.figure}")
        table = _table(curve.figure, "$/hour", "P(SLA)", "what to take")
        before: tuple[Option | None, float | None] | None = None
        for point in curve.points:
            one = point.option
            now = (one, None if one is None else one.cost_per_hour)
            same = before is not None and now[1] == before[1]
            if same and point.value != curve.asked:
                continue
            before = now
            asked = point.value == curve.asked
            taken = "nothing keeps the SLA" if one is None else phrases.taken(one)
            table.add_row(
                phrases.load(point.value) + (" (asked)" if asked else ""),
                phrases.money(now[1]),
                "-" if one is None else phrases.probability(one.p_sla),
                taken,
                style="bold" if asked else None,
            )
        out.print(table)


# --- the answer ------------------------------------------------------------------------------------------


def _show_best(best: Option, answer: Answer) -> None:
    _print(f"Take {phrases.headline(best, answer)}.", style="bold green")
    _print(phrases.certainty(best))
    say()
    if best.forecasts:
        out.print(_latencies(best))
    _print(" ".join(sentence for sentence in (phrases.binds(best), phrases.pod_load(best)) if sentence))


def _latencies(option: Option) -> Table:
    table = _table("limit", "expected", "80% interval", "of limit")
    if out.width >= NARROW:
        table.add_column("kept with", justify="right", no_wrap=True)
    for one in option.forecasts:
        cells = [
            one.limit.label,
            phrases.latency(one.expected_ms),
            phrases.latency_interval(one.interval_ms),
            phrases.share(one.expected_ms / one.limit.limit_ms),
            phrases.probability(one.kept),
        ]
        table.add_row(
            *cells[: len(table.columns)], style="bold" if one.limit.label == option.binding else None
        )
    return table


def _show_alternatives(best: Option, answer: Answer) -> tuple[Option, ...]:
    found = phrases.alternatives(answer)
    if not found:
        return ()
    _heading("Alternatives: cheaper but slower or less sure, or dearer but faster or surer")
    table = _table("service", "pods", "$/hour", "", "P(SLA)", "nearest limit")
    rows = sorted((best, *found), key=lambda one: one.cost_per_hour or 0.0)
    for one in rows:
        table.add_row(
            phrases.service(one, answer),
            f"{one.pods:,}",
            f"{one.cost_per_hour:,.2f}",
            "taken" if one is best else phrases.price_beside(one, best),
            phrases.probability(one.p_sla),
            phrases.nearest_limit(one),
            style="bold" if one is best else None,
        )
    out.print(table)
    _print(phrases.sentence(f"Chosen: {phrases.rule(answer)}"), style="dim")
    return found


def _show_rest(answer: Answer, shown: Iterable[Option]) -> None:
    found = phrases.merged(phrases.folds(answer, shown))
    if not found:
        return
    _heading("Others" if answer.recommended is not None else "By GPU type")
    single = [len(one.gpus) for one in found if ", " not in one.gpus]
    column = min(max(single, default=0), 20)
    for one in found:
        if len(one.gpus) <= column:
            _print(one.text, first=f"  {one.gpus:<{column}}  ")
        else:
            _print(f"{one.gpus}: {one.text}", first="  ", hang=4)


# --- nothing ---------------------------------------------------------------------------------------------


def _show_nothing(answer: Answer) -> None:
    _print(phrases.sentence(f"Nothing is recommended: {answer.reason}"), style="bold yellow")
    close = phrases.nearest(answer)
    if close:
        _heading("Nearest, with a pod that is nearly idle")
        _bullets(phrases.idle(one, answer) for one in close)
    elif (misfit := phrases.nearest_misfit(answer)) is not None:
        _heading("Nearest")
        _print(f"{phrases.service(misfit, answer)}: {misfit.reason}", first="  ")
    _heading("What would make it possible")
    _bullets(phrases.what_would_help(answer))


# --- how sure, and what next -----------------------------------------------------------------------------


def _show_trust(answer: Answer) -> None:
    trust = answer.trust
    say()
    _print(phrases.sentence(f"Trust is {trust.level}: {trust.sentence}"), style=TRUST_STYLE[trust.level])
    measured = phrases.measured(answer)
    _bullets([*trust.reasons, *([measured] if measured else [])])


def _show_measurement(answer: Answer) -> None:
    say()
    _print(phrases.next_measurement(answer))
    if answer.measurement.command:
        say(answer.measurement.command)


def _show_serve(answer: Answer) -> None:
    if answer.serve:
        say()
        _print("To serve it, in each pod:")
        say(answer.serve)
    elif answer.why_not_served:
        say()
        _print(phrases.why_not_served(answer))


# --- layout ----------------------------------------------------------------------------------------------


def _table(first: str, *others: str) -> Table:
    """Return a table that never breaks a figure; the first column gives way."""
    table = Table(box=None, header_style="dim", pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(first, overflow="fold")
    for name in others:
        left = name in ("limit", "nearest limit")
        table.add_column(name, justify="left" if left else "right", no_wrap=True)
    return table


def _heading(text: str) -> None:
    say()
    _print(text, style="bold")


def _bullets(texts: Iterable[str]) -> None:
    for text in texts:
        _print(text, first="  - ")


def _print(text: str, first: str = "", style: str | None = None, hang: int | None = None) -> None:
    """Print a paragraph no wider than the console, what follows the first line indented as far as it."""
    rest = " " * (len(first) if hang is None else hang)
    width = min(out.width, TEXT_WIDTH) - len(rest)
    kept = TOGETHER.sub(NO_BREAK, redact(text))
    for at, line in enumerate(Text(kept).wrap(out, width, overflow="fold")):
        say(f"{rest if at else first}{line.plain.rstrip().replace(NO_BREAK, ' ')}", style=style)
