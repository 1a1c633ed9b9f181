"""Task `train`: fit what is known of services, judge it with each LLM left out, register it, settle who is
champion."""

import hashlib
import json
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any

from omegaconf import DictConfig
from pydantic import BeforeValidator, Field, PositiveInt
from rich.table import Table

import llmpilot
from llmpilot import catalog, console, interrupts, tracking
from llmpilot.config import Facts, Model, Tracking, parse
from llmpilot.console import err, note, say
from llmpilot.dataset import Measurements, joined, merge, read_measurements, shipped_measurements
from llmpilot.dataset.runs import Collected, collect
from llmpilot.dataset.tracked import TAG_CONTENT_HASH
from llmpilot.errors import ConfigError, PilotError, TrackingError
from llmpilot.files import require_writable
from llmpilot.predict.service.knowledge import Knowledge
from llmpilot.predict.service.learning import fit_knowledge
from llmpilot.predict.service.own_levels import levels_of
from llmpilot.prices import PriceList
from llmpilot.processes import workers
from llmpilot.recommendation.sources import PUBLISHED
from llmpilot.secrets import redact
from llmpilot.serving.bundle import Bundle, Rows
from llmpilot.serving.contest import Verdict, compare
from llmpilot.serving.registry import PREDICTOR, TAG_SCORE, Champion, Registry, Trained
from llmpilot.tasks.evaluate_today import BOTH, TPOT
from llmpilot.tasks.train_exam import SCORES, SCORES_FILE, Exam

ROOT = Path(".llmpilot") / "trained"


class Training(Facts):
    """The task's part of the configuration."""

    model_name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.\- ]*$")]
    dataset: str = PUBLISHED
    measurements: str | None = None
    models: str | None = None
    runs: bool = True
    simulated: bool = False
    catalog: Annotated[list[str] | None, BeforeValidator(lambda v: [v] if isinstance(v, str) else v)] = None
    workers: PositiveInt = 2


def run(cfg: DictConfig) -> dict[str, Any]:
    """Train, judge, register; return the run, the version, its scores, and whether it became champion.

    Raises:
        ConfigError, MeasurementsError: an impossible option, or rows that cannot be used.
        TrackingError: MLflow cannot be used; what was trained is kept on disk.
    """
    settings = parse(Training, {key: cfg[key] for key in Training.model_fields}, "train")
    store = parse(Tracking, cfg.tracking, "tracking")
    prices = catalog.composed_prices(cfg)
    gpus = catalog.gpus(settings.catalog, prices)
    _require_place()
    rows, own = _rows(settings, store)

    exam = Exam(rows, prices, settings.workers)
    with err.status("reading what recommendations are judged by"):
        _ = exam.menus  # refuses now what it would refuse in the end
    identity = _identity(exam, prices, sorted(gpus), own)
    registry = Registry(store)
    tags = {
        TAG_CONTENT_HASH: rows.measurements.content_hash,
        tracking.TAG_MEASUREMENT: "+".join(sorted(_by_measurement(rows.measurements))),
        tracking.TAG_VERSION: llmpilot.__version__,
    }
    run_id = registry.start_parent(PREDICTOR, f"services, {len(rows.measurements)} rows", tags)
    folder = ROOT / identity
    trained = Trained(folder / "bundle", folder / "rows", folder / "evaluation")
    try:
        if not (trained.evaluation / SCORES_FILE).is_file():
            with _progress() as told:
                with workers(settings.workers) as run_on:
                    knowledge = fit_knowledge(rows.measurements, rows.models, told, run_on)
                Bundle(_with_open_loops(knowledge, own), gpus, prices).save(trained.bundle)
                rows.save(trained.rows)
                told("judging recommendations for each LLM without its own rows")
                exam.keep(exam.judged(rows, told), trained.evaluation)
        else:
            say(f"taken from {folder}, where an earlier try kept it")
    except BaseException as error:
        _end(registry, run_id, error, "nothing was registered")
        raise
    scores = json.loads((trained.evaluation / SCORES_FILE).read_text(encoding="utf-8"))
    _show(scores)
    result: dict[str, Any] = {
        "run_id": run_id,
        "model_name": settings.model_name,
        "version": None,
        "aliases": [],
        "champion_moved": False,
        "why": "",
        "scores": {key: scores[key] for key in SCORES},
        "rule": scores["rule"],
        "dataset": _described(rows, settings),
        "prices": prices.to_dict(),
        "folder": str(folder),
    }
    facts = {
        "dataset": result["dataset"],
        "prices": prices.label,
        "gpus": len(gpus),
        "rule": scores["rule"],
        "terms": exam.terms,
    }
    if run_id is not None:
        aliases = registry.all_aliases(settings.model_name)
        try:
            registry.log(run_id, trained, facts, {key: scores[key] for key in SCORES})
            _register(registry, trained, exam, scores, result)
        except BaseException as error:
            kept = f"what was trained is kept in {folder}: the same command registers it"
            _end(registry, run_id, error, kept)
            registry.withdraw(settings.model_name, run_id, aliases or {})
            raise
    if registry.problem is not None:
        registry.end(run_id, "FAILED")
        raise _not_registered(registry, folder, result)
    shutil.rmtree(folder, ignore_errors=True)
    with suppress(OSError):  # others may still be kept there
        ROOT.rmdir()
    result["folder"] = None
    say(
        f"{settings.model_name} version {result['version']}: {', '.join(result['aliases'])}",
        style="bold green",
    )
    say(f"{'champion moved' if result['champion_moved'] else 'champion stays'}: {result['why']}")
    say(f"run {run_id}; mlflow models serve -m models:/{settings.model_name}@champion --env-manager local")
    return result


def _require_place() -> None:
    """Check that what is trained can be kept until it is registered."""
    try:
        require_writable(ROOT / "bundle")
    except ConfigError as error:
        raise ConfigError(
            "the working directory cannot be written", given=ROOT.absolute(), cure="start in another one"
        ) from error


def _end(registry: Registry, run_id: str | None, error: BaseException, kept: str) -> None:
    """Set the status of a run that ended early; say so where it was interrupted."""
    interrupted = isinstance(error, KeyboardInterrupt)
    if interrupted:
        interrupts.acknowledge()
        note(f"interrupted: {kept}", style="yellow")
    registry.end(run_id, "KILLED" if interrupted else "FAILED")


@contextmanager
def _progress() -> Iterator[Callable[[str], None]]:
    """Yield what says what is being done: a line each, piped or not, with the time since the start."""
    started = time.perf_counter()

    def tell(text: str) -> None:
        interrupts.check()
        note(f"{time.perf_counter() - started:4.0f} s: {text}")
        status.update(text)

    with err.status("") as status:
        yield tell


# --- the rows --------------------------------------------------------------------------------------------


def _rows(settings: Training, store: Tracking) -> tuple[Rows, Collected]:
    """Return the rows to learn from, simulated ones only if asked for, and the user's own runs; say which."""
    models = catalog.models_in_folder(settings.models)[0] if settings.models else {}
    parts = [
        shipped_measurements()
        if settings.dataset == PUBLISHED
        else read_measurements(Path(settings.dataset).expanduser())
    ]
    if settings.measurements is not None:
        parts.append(read_measurements(Path(settings.measurements).expanduser()))
    own = _own(settings, store)
    known = {str(run_id) for part in parts for run_id in part.table["run_id"].dropna()}
    fresh = own.measurements.select(~own.measurements.table["run_id"].isin(known))
    whole = joined(*parts, fresh)
    if not settings.simulated:
        simulated = (whole.table["measurement"] == "simulated").to_numpy(bool)
        if simulated.any():
            note(
                f"left out: {int(simulated.sum())} simulated rows; simulated=true takes them", style="yellow"
            )
            whole = whole.select(~simulated)
    taken = ", ".join(f"{rows} {kind}" for kind, rows in _by_measurement(whole).items())
    say(f"learning from {len(whole)} rows ({taken or 'none'}) of {whole.table['model'].nunique()} LLMs")
    return Rows(whole, models | _models_of(own)), own


def _own(settings: Training, store: Tracking) -> Collected:
    """Return the user's own runs; none, where they are not asked for."""
    if not settings.runs:
        return Collected(merge())
    with err.status(f"reading your runs from {redact(store.uri)}"):
        found = collect(store, simulated=settings.simulated)
    for reason, number in sorted(found.left_out.items()):
        note(f"left out: {reason}: {number}", style="yellow")
    return found


def _models_of(own: Collected) -> dict[str, Model]:
    """Return the LLMs of own runs, by the name that their rows have."""
    table = own.measurements.table
    pairs = zip(table["run_id"].astype(str), table["model"].astype(str), strict=True)
    return {model: own.facts[run_id][0] for run_id, model in dict.fromkeys(pairs) if run_id in own.facts}


def _with_open_loops(knowledge: Knowledge, own: Collected) -> Knowledge:
    """Return the same, conditioned on own levels that the fit does not use: those of open loops."""
    return knowledge.conditioned_on([one for one in levels_of(own) if one.level.users is None])


def _by_measurement(rows: Measurements) -> dict[str, int]:
    counts = Counter(rows.table["measurement"].dropna().astype(str))
    return {kind: counts[kind] for kind in sorted(counts)}


def _described(rows: Rows, settings: Training) -> dict[str, Any]:
    return {
        "source": settings.dataset,
        "content_hash": rows.measurements.content_hash,
        "rows": len(rows.measurements),
        "models": int(rows.measurements.table["model"].nunique()),
        "by_measurement": _by_measurement(rows.measurements),
    }


# --- what was trained, on disk ---------------------------------------------------------------------------


def _identity(exam: Exam, prices: PriceList, gpus: list[str], own: Collected) -> str:
    made_of = {
        "terms": exam.terms,
        "models": {name: model.model_dump(mode="json") for name, model in exam.rows.models.items()},
        "own": own.measurements.content_hash,
        "prices": prices.to_dict(),
        "gpus": gpus,
        "version": llmpilot.__version__,
    }
    return hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:16]


# --- the registry ----------------------------------------------------------------------------------------


def _register(
    registry: Registry, trained: Trained, exam: Exam, scores: dict[str, Any], result: dict[str, Any]
) -> None:
    """Register the version as challenger, and as champion if it is better; complete `result`."""
    name, data = result["model_name"], exam.rows.measurements
    tags = {TAG_CONTENT_HASH: data.content_hash}
    score = scores[BOTH]["so_score"]
    if score is not None:
        tags[f"{TAG_SCORE}.{exam.terms}"] = repr(float(score))
    with err.status("logging the model"):
        version = registry.register(name, result["run_id"], trained, data, tags)
    if version is None:
        return
    result["version"] = version
    champion = registry.champion(name)
    if registry.problem is not None:
        return
    verdict = _settle(registry, name, champion, exam, score)
    if verdict.moved:
        registry.crown(name, version)
    result |= {
        "champion_moved": verdict.moved,
        "why": verdict.why,
        "aliases": registry.aliases(name, version),
    }


def _settle(
    registry: Registry, name: str, champion: Champion | None, exam: Exam, score: float | None
) -> Verdict:
    if champion is None:
        return Verdict(True, "there was no champion")
    if score is None:
        return Verdict(False, "these rows hold nothing to judge recommendations by: there is no score")
    theirs = champion.scores.get(exam.terms)
    if theirs is not None:
        return compare(score, theirs, champion.version)
    say(f"champion version {champion.version} was scored on other data or settings: it is scored on these")
    rows = registry.rows_of(name, champion.version)
    if isinstance(rows, Rows):
        try:
            with _progress() as told:
                theirs = exam.judged(rows, told).scores[BOTH]["so_score"]
        except PilotError as error:
            rows = error
        else:
            registry.add_score(name, champion.version, exam.terms, theirs)
            return compare(score, theirs, champion.version)
    why = rows.wrong if isinstance(rows, PilotError) else registry.problem
    return Verdict(False, f"champion version {champion.version} cannot be compared: {why}")


def _not_registered(registry: Registry, folder: Path, result: dict[str, Any]) -> TrackingError:
    return TrackingError(
        f"trained, but not registered: {registry.problem}",
        given=f"tracking.uri={redact(registry.tracking.uri)}",
        cure=f"it is kept in {folder}; {registry.when} give the same command again: it takes it from there",
        result=result,
    )


def _show(scores: dict[str, Any]) -> None:
    table = Table(title="recommendations for each LLM without its own rows")
    for column in ("limits on", "settings", "kept", "overspend", "median", "S/O"):
        table.add_column(column, justify="right" if column != "limits on" else "left")
    for key, title in ((TPOT, "TPOT"), (BOTH, "TPOT and TTFT")):
        one = scores[key]
        shares = [one[name] for name in ("kept", "overspend", "overspend_median")]
        told = ["-" if share is None else f"{share:.1%}" for share in shares]
        table.add_row(title, str(one["settings"]), *told, f"{one['so_score']:.3f}")
    console.out.print(table)
    errors = ", ".join(
        f"{name.upper()} {error:.1%}" for name, error in scores["errors"].items() if error is not None
    )
    say(f"median error of predictions: {errors or 'nothing could be judged'}")
