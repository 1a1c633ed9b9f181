"""Task `evaluate`: how good the recommendations of a predictor are for LLMs that it has not seen."""

import time
from dataclasses import asdict
from math import inf
from pathlib import Path
from typing import Annotated, Any, Literal

from omegaconf import DictConfig
from pydantic import Field, PositiveFloat, PositiveInt
from rich.table import Table

from llmpilot import console, interrupts
from llmpilot.config import Facts, Sla, Users, build, parse, parse_seed, whole_number
from llmpilot.dataset import Dataset
from llmpilot.errors import ConfigError
from llmpilot.files import replacing, require_writable
from llmpilot.predict.decision import Need
from llmpilot.predict.evaluation import Fold, evaluate, on_profiles, profile_key
from llmpilot.predict.predictor import Predictor
from llmpilot.predict.report import predictions_table, recommendations_table, summary
from llmpilot.predict.scores import grid_of
from llmpilot.processes import workers
from llmpilot.recommendation.need import median_limits
from llmpilot.recommendation.sources import data_of
from llmpilot.tasks import evaluate_today


class Grid(Facts):
    """The settings over which scores are averaged."""

    nttft_ms: Annotated[list[PositiveFloat], Field(min_length=1)]
    itl_ms: Annotated[list[PositiveFloat], Field(min_length=1)]
    users: Annotated[list[Users], Field(min_length=1)]


class _On(Facts):
    on: Literal["paper", "today"]


class Evaluation(Facts):
    """The task's part of the configuration, `evaluate`."""

    seeds: Annotated[int, Field(ge=1, le=1000)]
    measured: list[str]
    risk: Annotated[float, Field(gt=0, lt=1)] | None
    grid: Grid
    workers: PositiveInt


def run(cfg: DictConfig) -> dict[str, Any]:
    """Evaluate the composed predictor, or on=today the services' model; return its scores, as fractions.

    Raises:
        ConfigError, DatasetError: an impossible option, or a data set that cannot be used.
    """
    if parse(_On, {"on": cfg.on}, "evaluate").on == "today":
        return evaluate_today.run(cfg)
    started = time.perf_counter()
    settings = parse(Evaluation, cfg.evaluate, "evaluate")
    predictor: Predictor = build(cfg.predictor, "predictor")
    sla = parse(Sla, cfg.sla, "sla")
    data = data_of(cfg.dataset, None, simulated=cfg.simulated is True)
    refuse_unknown_profiles(data, settings.measured)
    output = Path(str(cfg.predictions_file)).expanduser() if cfg.predictions_file else None
    if output is not None:
        require_writable(output)
    paper, seed = paper_need(cfg.users, sla), parse_seed(cfg.seed)
    needs = [paper, *grid_of(**settings.grid.model_dump())]
    both = [*needs, *(need.counting_failures() for need in needs)]

    folds: list[Fold] = []
    seeds = range(seed, seed + settings.seeds)
    total = settings.seeds * len(data.models)
    try:
        with workers(settings.workers, "evaluate.workers") as run_on, console.err.status("") as status:
            shown, risk = settings.measured, settings.risk
            for fold in evaluate(predictor, data, both, seeds, measured=shown, risk=risk, run=run_on):
                folds.append(fold)
                interrupts.check()
                status.update(f"{predictor.name}: {len(folds)} of {total} folds, last {fold.model}")
    except KeyboardInterrupt:
        interrupts.acknowledge()
        console.note(
            f"interrupted after {len(folds)} of {total} folds: part of an evaluation has no scores, "
            "nothing is written",
            style="yellow",
        )
        raise
    result = {
        "predictor": predictor.name,
        "rule": asdict(predictor.rule(settings.risk)),
        "measured": [*predictor.references, *settings.measured],
        **summary(folds, len(needs)),
        "dataset": data.content_hash,
        "seconds": round(time.perf_counter() - started, 1),
    }
    _show(result, paper)
    if output is not None:
        beside = output.with_suffix(f".recommendations{output.suffix}")
        for path, table in ((output, predictions_table(folds)), (beside, recommendations_table(folds, both))):
            with replacing(path) as temporary:
                table.to_csv(temporary, index=False)
        result |= {"predictions_file": str(output), "recommendations_file": str(beside)}
    return result


def paper_need(users: Any, sla: Sla) -> Need:
    """Return the single setting to score.

    Raises:
        ConfigError: the SLA limits what no predictor predicts.
    """
    limits = median_limits(sla)
    return Need(whole_number(users, "users"), limits.get("nttft_ms", inf), limits.get("itl_ms", inf))


def refuse_unknown_profiles(data: Dataset, wanted: list[str]) -> None:
    """Check that some LLM was measured on each of the named profiles.

    Raises:
        ConfigError: none was.
    """
    table = data.table
    known = {profile_key(gpu, int(count)) for gpu, count in zip(table["gpu"], table["count"], strict=True)}
    for name in wanted:
        if not on_profiles(table, [name]).any():
            raise ConfigError(
                f"no LLM was measured on {name}",
                given=f"evaluate.measured={wanted}",
                cure=f"evaluate.measured=[1xH100]; there are {', '.join(sorted(known))}",
            )


def _show(result: dict[str, Any], paper: Need) -> None:
    limits = f"nTTFT {paper.nttft_ms:g} ms, ITL {paper.itl_ms:g} ms, {paper.users} users"
    table = Table(title=f"{result['predictor']}: each LLM left out, {len(result['seeds'])} seeds")
    for column in ("", "S", "O", "S/O", "sd over seeds", "efficiency"):
        table.add_column(column, justify="left" if not column else "right")
    for title, scores in (
        (f"the paper's setting: {limits}", result["paper"]),
        ("mean over the grid", result["grid"]),
        ("the setting, failures at most 1%", result["with_failures"]["paper"]),
        ("grid, failures at most 1%", result["with_failures"]["grid"]),
    ):
        table.add_row(
            title,
            f"{scores['success_rate']:.1%}",
            "-" if scores["overspend"] is None else f"{scores['overspend']:.1%}",
            f"{scores['so_score']:.3f}",
            f"{scores['so_score_sd']:.3f}",
            f"{scores['efficiency']:.3f}",
        )
    console.out.print(table)
    models = Table(title="by LLM, over the seeds")
    for column in ("LLM", "recommended", "succeeds", "grid S", "grid efficiency", "nTTFT error", "ITL error"):
        models.add_column(column, justify="left" if column in ("LLM", "recommended") else "right")
    for row in result["per_model"]:
        models.add_row(
            row["model"],
            ", ".join(f"{name} ({times})" for name, times in row["recommended"].items()),
            f"{row['paper_success_rate']:.0%}",
            f"{row['grid_success_rate']:.0%}",
            f"{row['grid_efficiency']:.2f}",
            *("-" if row[name] is None else f"{row[name]:.1%}" for name in ("nttft_mape", "itl_mape")),
        )
    console.out.print(models)
    mape = [f"{n} {v:.1%}" for n, v in result["mape"].items() if v is not None]
    console.say(f"mean error: {', '.join(mape) or 'it predicts no latencies'}; {result['seconds']:.0f} s")
