"""Task `train`: fit the recommender, judge it with each LLM left out, register it, settle who is champion."""

import hashlib
import json
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

from omegaconf import DictConfig
from pydantic import BeforeValidator, Field
from rich.table import Table

import llmpilot
from llmpilot import catalog, console, interrupts, tracking
from llmpilot.config import Facts, Sla, Tracking, build, parse, parse_seed
from llmpilot.console import err, note, say
from llmpilot.dataset import Dataset
from llmpilot.dataset.runs import collect
from llmpilot.dataset.tracked import TAG_CONTENT_HASH
from llmpilot.errors import ConfigError, PilotError, TrackingError
from llmpilot.files import require_writable
from llmpilot.predict.pilot.pilot import Pilot
from llmpilot.predict.scores import grid_of
from llmpilot.recommendation.prices import profiles_at
from llmpilot.recommendation.sources import PUBLISHED, measured_only, stored, with_fresh
from llmpilot.secrets import redact
from llmpilot.serving.bundle import Bundle
from llmpilot.serving.contest import Verdict, compare, earlier
from llmpilot.serving.registry import PREDICTOR, TAG_SCORE, Champion, Registry, Trained
from llmpilot.tasks.evaluate import Evaluation, paper_need, refuse_unknown_profiles
from llmpilot.tasks.train_exam import SCORES_FILE, Exam
from llmpilot.workload import load_workload

ROOT = Path(".llmpilot") / "trained"
SCORES = ("paper", "grid", "with_failures", "mape")


class Training(Facts):
    """The task's part of the configuration."""

    model_name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.\- ]*$")]
    dataset: str = PUBLISHED
    runs: bool = True
    simulated: bool = False
    catalog: Annotated[list[str] | None, BeforeValidator(lambda v: [v] if isinstance(v, str) else v)] = None


def run(cfg: DictConfig) -> dict[str, Any]:
    """Train, evaluate, register; return the run, the version, its scores, and whether it became champion.

    Raises:
        ConfigError, DatasetError: an impossible option, or data that cannot be used.
        TrackingError: MLflow cannot be used; what was trained is kept on disk.
    """
    settings = parse(Training, {key: cfg[key] for key in Training.model_fields}, "train")
    predictor = build(cfg.predictor, "predictor")
    if not isinstance(predictor, Pilot):
        raise ConfigError(
            "only the pilot predictor can be registered: it is kept in files that hold no code",
            given=f"predictor={getattr(predictor, 'name', predictor)}",
            cure="predictor=pilot; task=evaluate judges all others",
        )
    store = parse(Tracking, cfg.tracking, "tracking")
    evaluation = parse(Evaluation, cfg.evaluate, "evaluate")
    need = paper_need(cfg.users, parse(Sla, cfg.sla, "sla"))
    profiles = profiles_at(catalog.composed_prices(cfg), settings.catalog)
    workload, seed = load_workload(cfg.workload), parse_seed(cfg.seed)
    data = _data(settings, store, str(cfg.workload.name))
    refuse_unknown_profiles(data, evaluation.measured)

    _require_place()
    seeds = range(seed, seed + evaluation.seeds)
    exam = Exam(data, (need, *grid_of(**evaluation.grid.model_dump())), seeds, evaluation)
    recipe = predictor.model_dump(mode="json")
    identity = _identity(exam, recipe, seed, [profile.model_dump() for profile in profiles])
    registry = Registry(store)
    kinds = sorted(set(data.table["measurement"]))
    tags = {
        TAG_CONTENT_HASH: data.content_hash,
        tracking.TAG_MEASUREMENT: "+".join(kinds),
        tracking.TAG_VERSION: llmpilot.__version__,
    }
    run_id = registry.start_parent(PREDICTOR, f"{predictor.name}, {len(data)} rows", tags)
    trained = Trained(ROOT / identity / "bundle", ROOT / identity / "evaluation")
    try:
        if not (trained.evaluation / SCORES_FILE).is_file():
            folds = exam.folds(predictor)
            with err.status(f"fitting {predictor.name} on all {len(data)} rows"):
                fitted = predictor.fit(data, seed)
            name = str(cfg.workload.name)
            Bundle(fitted, data, tuple(profiles), workload.heaviest_weight, name, recipe).save(trained.bundle)
            exam.keep(folds, trained.evaluation)
        else:
            say(f"taken from {ROOT / identity}, where an earlier try kept it")
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
        "scores": {"seeds": scores["seeds"], **{key: scores[key] for key in SCORES}},
        "dataset": _described(data, settings),
        "folder": str(trained.bundle.parent),
    }
    facts = {
        "predictor": recipe,
        "evaluate": evaluation.model_dump(),
        "users": need.users,
        "sla": {"nttft_ms": need.nttft_ms, "itl_ms": need.itl_ms},
        "seed": seed,
        "workload": cfg.workload.name,
        "dataset": result["dataset"],
        "profiles": len(profiles),
        "terms": exam.terms,
    }
    if run_id is not None:
        aliases = registry.all_aliases(settings.model_name)
        try:
            registry.log(run_id, trained, facts, {key: scores[key] for key in SCORES})
            _register(registry, trained, exam, float(scores["grid"]["so_score"]), result)
        except BaseException as error:
            kept = f"what was trained is kept in {trained.bundle.parent}: the same command registers it"
            _end(registry, run_id, error, kept)
            registry.withdraw(settings.model_name, run_id, aliases or {})
            raise
    if registry.problem is not None:
        registry.end(run_id, "FAILED")
        raise _not_registered(registry, trained, result)
    shutil.rmtree(trained.bundle.parent, ignore_errors=True)
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


# --- the data --------------------------------------------------------------------------------------------


def _data(settings: Training, store: Tracking, workload: str) -> Dataset:
    """Return the rows to learn from: of this workload, simulated ones only if asked for; say which."""
    data = stored(settings.dataset)
    if settings.runs:
        with err.status(f"reading your runs from {redact(store.uri)}"):
            found = collect(store, simulated=settings.simulated)
        for reason, number in sorted(found.left_out.items()):
            note(f"left out: {reason}: {number}", style="yellow")
        data = with_fresh(data, found.dataset)
    if not settings.simulated:
        data = measured_only(data)
    other = [name not in (workload, None) for name in data.table["workload"]]
    if any(other):
        note(f"left out: {sum(other)} rows of other workloads than {workload}", style="yellow")
        data = data.select([not one for one in other])
    taken = ", ".join(f"{rows} {kind}" for kind, rows in _by_measurement(data).items())
    say(f"learning from {len(data)} rows ({taken or 'none'}) of {len(data.models)} LLMs")
    return data


def _by_measurement(data: Dataset) -> dict[str, int]:
    counts = data.table["measurement"].value_counts().sort_index()
    return {str(kind): int(rows) for kind, rows in counts.items()}


def _described(data: Dataset, settings: Training) -> dict[str, Any]:
    return {
        "source": settings.dataset,
        "content_hash": data.content_hash,
        "rows": len(data),
        "models": len(data.models),
        "by_measurement": _by_measurement(data),
    }


# --- what was trained, on disk ---------------------------------------------------------------------------


def _identity(exam: Exam, recipe: dict[str, Any], seed: int, profiles: list[dict[str, Any]]) -> str:
    made_of = {
        "terms": exam.terms,
        "recipe": recipe,
        "seed": seed,
        "profiles": profiles,
        "version": llmpilot.__version__,
    }
    return hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:16]


# --- the registry ----------------------------------------------------------------------------------------


def _register(registry: Registry, trained: Trained, exam: Exam, score: float, result: dict[str, Any]) -> None:
    """Register the version as challenger, and as champion if it is better; complete `result`."""
    name = result["model_name"]
    tags = {TAG_CONTENT_HASH: exam.data.content_hash, f"{TAG_SCORE}.{exam.terms}": repr(score)}
    with err.status("logging the model"):
        version = registry.register(name, result["run_id"], trained, exam.data, tags)
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


def _settle(registry: Registry, name: str, champion: Champion | None, exam: Exam, score: float) -> Verdict:
    if champion is None:
        return Verdict(True, "there was no champion")
    theirs = champion.scores.get(exam.terms)
    if theirs is not None:
        return compare(score, theirs, champion.version)
    say(f"champion version {champion.version} was scored on other data or settings: it is scored on these")
    bundle = registry.bundle_of(name, champion.version)
    if isinstance(bundle, Bundle):
        try:
            folds = exam.folds(earlier(bundle.recipe, bundle.data, exam.data))
        except PilotError as error:
            bundle = error
        else:
            theirs = float(exam.scores(folds)["grid"]["so_score"])
            registry.add_score(name, champion.version, exam.terms, theirs)
            return compare(score, theirs, champion.version)
    why = bundle.wrong if isinstance(bundle, PilotError) else registry.problem
    return Verdict(False, f"champion version {champion.version} cannot be compared: {why}")


def _not_registered(registry: Registry, trained: Trained, result: dict[str, Any]) -> TrackingError:
    return TrackingError(
        f"trained, but not registered: {registry.problem}",
        given=f"tracking.uri={redact(registry.tracking.uri)}",
        cure=f"it is kept in {trained.bundle.parent}; once MLflow answers, give the same command again: "
        "it takes it from there",
        result=result,
    )


def _show(scores: dict[str, Any]) -> None:
    table = Table(title=f"each LLM left out, {len(scores['seeds'])} seeds")
    for column in ("", "S", "O", "S/O", "efficiency"):
        table.add_column(column, justify="right" if column else "left")
    failures = scores["with_failures"]
    for title, row in (
        ("the single setting", scores["paper"]),
        ("mean over the grid", scores["grid"]),
        ("grid, failures at most 1%", failures["grid"]),
    ):
        overspend = "-" if row["overspend"] is None else f"{row['overspend']:.1%}"
        table.add_row(
            title,
            f"{row['success_rate']:.1%}",
            overspend,
            f"{row['so_score']:.3f}",
            f"{row['efficiency']:.3f}",
        )
    console.out.print(table)
    mape = ", ".join(f"{name} {value:.1%}" for name, value in scores["mape"].items() if value is not None)
    say(f"mean error: {mape}")
