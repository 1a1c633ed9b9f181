"""What task `recommend` prints: the ranking as a table, then the answer in sentences."""

from rich.table import Table

from llmpilot.console import out, say
from llmpilot.recommendation.advice import Advice
from llmpilot.recommendation.ranking import Option

WIDE = 130
TRUST_STYLE = {"high": "green", "medium": "yellow", "low": "red"}


def show(advice: Advice) -> None:
    """Print the table of all profiles, the recommendation, how far to trust it, and what to measure next."""
    question, ranking = advice.question, advice.ranking
    promised = " and ".join(limit.promise for limit in question.sla.limits)
    table = Table(
        title=f"{question.model.name} for {question.users:,} users, medians {promised}, "
        f"kept with a probability of {1 - question.risk:.0%}",
        header_style="bold",
    )
    for name in ("GPU profile", "pods", "$/hour", "users/pod", "nTTFT [ms]", "ITL [ms]", "P(SLA)", "why not"):
        left = name in ("GPU profile", "why not")
        table.add_column(name, justify="left" if left else "right", no_wrap=name != "why not")
    for option in ranking.options:
        best = option is ranking.recommended
        table.add_row(*_cells(option), style="bold green" if best else None if option.feasible else "dim")
    out.print(table)
    _show_answer(advice)


def _show_answer(advice: Advice) -> None:
    best = advice.ranking.recommended
    if best is None:
        say(f"nothing is recommended: {advice.ranking.reason}", style="bold yellow")
    else:
        say(
            f"recommended: {best.pods} x ({best.profile.label}), ${best.cost_per_hour:,.2f} an hour, "
            f"{best.users_per_pod} users a pod (at this risk a pod takes {best.users_max}); "
            f"P(SLA) {best.p_sla:.2f}",
            style="bold green",
        )
        say(advice.serve or advice.why_not_served)
    if advice.measured_rows:
        on = ", ".join(advice.measured_on)
        say(f"conditioned on {advice.measured_rows} rows measured of this model, on {on}")
    say(f"trust: {advice.trust.level}", style=TRUST_STYLE[advice.trust.level])
    for reason in advice.trust.reasons:
        say(f"  - {reason}")
    say(f"next measurement: {advice.why_measurement}")


def _cells(option: Option) -> tuple[str, ...]:
    return (
        option.profile.label,
        "-" if option.pods is None else f"{option.pods:,}",
        "-" if option.cost_per_hour is None else f"{option.cost_per_hour:,.2f}",
        "-" if option.users_per_pod is None else str(option.users_per_pod),
        _latency(option.nttft_ms, option.nttft_ms_interval),
        _latency(option.itl_ms, option.itl_ms_interval),
        "-" if option.nttft_ms is None else f"{option.p_sla:.2f}",
        option.reason,
    )


def _latency(value: float | None, interval: tuple[float, float] | None) -> str:
    if value is None:
        return "-"
    return f"{value:.3g}" if interval is None else f"{value:.3g} ({interval[0]:.3g} to {interval[1]:.3g})"
