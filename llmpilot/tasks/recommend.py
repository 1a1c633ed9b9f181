"""Task `recommend`: which GPU profile, and how many pods of it, keep an SLA for a model at the least cost."""

from pathlib import Path
from typing import Annotated, Any

from omegaconf import DictConfig
from pydantic import BeforeValidator

from llmpilot import catalog
from llmpilot.config import Sla, Tracking, build, parse, parse_seed
from llmpilot.console import err, say
from llmpilot.errors import ConfigError
from llmpilot.files import require_writable, write_text
from llmpilot.predict.predictor import Predictor
from llmpilot.recommendation.advice import Advice, Question, advise
from llmpilot.recommendation.api import Asked
from llmpilot.recommendation.learn import learn
from llmpilot.recommendation.manifest import Pod, manifest_text
from llmpilot.recommendation.need import need_of
from llmpilot.recommendation.prices import profiles_at
from llmpilot.recommendation.serve_line import require_servable
from llmpilot.recommendation.sources import PUBLISHED, data_of
from llmpilot.tasks.recommend_show import show
from llmpilot.workload import load_workload


class Asking(Asked):
    """The task's part of the configuration."""

    catalog: Annotated[list[str] | None, BeforeValidator(lambda v: [v] if isinstance(v, str) else v)] = None
    dataset: str = PUBLISHED
    runs: bool = True
    simulated: bool = False
    manifest: str | None = None


def run(cfg: DictConfig) -> dict[str, Any]:
    """Print the ranking, the recommendation and how far to trust it; return all of it.

    Raises:
        PilotError: an impossible option, a file that cannot be used, an SLA that predictions do not cover.
        TrackingError: the user's own runs cannot be read.
    """
    asking = parse(Asking, {key: cfg[key] for key in Asking.model_fields}, "recommend")
    model = catalog.served_model(cfg)
    sla = parse(Sla, cfg.sla, "sla")
    need_of(asking.users, sla)
    tracking, seed = parse(Tracking, cfg.tracking, "tracking"), parse_seed(cfg.seed)
    pod = parse(Pod, _texts(cfg.pod), "pod")
    if asking.manifest is not None:
        _require_place(asking.manifest)
    prices = catalog.composed_prices(cfg)
    profiles = profiles_at(prices, asking.catalog)
    if asking.manifest is not None:
        require_servable(model)
    workload = load_workload(cfg.workload)
    predictor = build(cfg.predictor, "predictor")
    assert isinstance(predictor, Predictor)

    with err.status("reading measurements"):
        data = data_of(asking.dataset, tracking if asking.runs else None, simulated=asking.simulated)
    with err.status(f"fitting {predictor.name} on {len(data)} measurements"):
        learned = learn(data, model, predictor, workload=str(cfg.workload.name), seed=seed)
    with err.status("predicting, and weighing what to measure next"):
        advice = advise(
            Question(
                model,
                asking.users,
                sla,
                tuple(profiles),
                workload.heaviest_weight,
                asking.risk,
                asking.hours,
            ),
            learned,
        )
    show(advice)
    say(f"prices: {prices.label}")
    result = advice.to_dict() | {
        "predictor": predictor.name,
        "dataset": data.content_hash,
        "prices": prices.to_dict(),
    }
    return result | {"manifest": _write_manifest(advice, asking.manifest, pod)}


def _write_manifest(advice: Advice, path: str | None, pod: Pod) -> str | None:
    if path is None:
        return None
    best = advice.ranking.recommended
    if best is None or best.pods is None:
        say("no manifest is written: nothing is recommended")
        return None
    write_text(Path(path).expanduser(), manifest_text(advice.question.model, best.profile, best.pods, pod))
    say(f"manifest written: kubectl apply -f {path}")
    return path


def _require_place(path: str) -> None:
    try:
        require_writable(Path(path).expanduser())
    except ConfigError as error:
        wrong = error.wrong.replace("result_file", "manifest")
        raise ConfigError(wrong, given=path, cure="manifest=<a writable path>") from None


def _texts(node: DictConfig) -> dict[str, Any]:
    """Return the node with quantities as text: `cpu: 4` is written as a number."""
    values = {str(key): value for key, value in node.items()}
    return values | {key: str(values[key]) for key in ("cpu", "memory") if key in values}
