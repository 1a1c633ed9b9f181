"""Task `recommend`: which service on which GPUs, and how many pods, carry a load within an SLA cheapest."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

from omegaconf import DictConfig
from pydantic import BeforeValidator, PositiveInt

from llmpilot import catalog
from llmpilot.config import Facts, Gpu, Sla, Tracking, build, parse, parse_seed, plain
from llmpilot.console import err, note, say
from llmpilot.errors import ConfigError
from llmpilot.files import require_writable, write_text
from llmpilot.predict.predictor import Predictor
from llmpilot.prices import PriceList
from llmpilot.recommendation.answer import Answer
from llmpilot.recommendation.ask import asked_of, engines_of, question_of
from llmpilot.recommendation.learn import learn
from llmpilot.recommendation.manifest import Pod, manifest_text
from llmpilot.recommendation.need import need_of
from llmpilot.recommendation.page import page
from llmpilot.recommendation.paper import PAPER_ENGINE, PaperQuestion, answered_paper
from llmpilot.recommendation.prices import profiles_at
from llmpilot.recommendation.question import Choosing, Demand, Question
from llmpilot.recommendation.sources import PUBLISHED, data_of, knowledge_of
from llmpilot.recommendation.today import Answered, answered, require_limits
from llmpilot.recommendation.what_if import PriceCurve, what_if
from llmpilot.recommendation.what_if_plot import plot_what_if
from llmpilot.secrets import redact
from llmpilot.tasks.recommend_show import show, show_what_if
from llmpilot.workload import load_workload

F = TypeVar("F", bound=Facts)


def _listed(value: Any) -> Any:
    return value if isinstance(value, list) or value is None else [value]


class Asking(Facts):
    """The task's part of the configuration, beside the load and how to choose."""

    engines: Annotated[list[str] | None, BeforeValidator(_listed)] = None
    catalog: Annotated[list[str] | None, BeforeValidator(_listed)] = None
    gpus_per_pod: Annotated[list[PositiveInt] | None, BeforeValidator(_listed)] = None
    runs: bool = True
    measurements: str | None = None
    what_if: bool = False
    page: str | None = None
    plot: str | None = None
    dataset: str = PUBLISHED
    simulated: bool = False
    manifest: str | None = None


@dataclass(frozen=True)
class _Asked:
    """What the command line says, whichever world it asks about."""

    cfg: DictConfig
    asking: Asking
    demand: Demand
    choosing: Choosing
    sla: Sla
    prices: PriceList
    profiles: tuple[Gpu, ...]

    @property
    def tracking(self) -> Tracking | None:
        """Where the user's own runs are; None: they are not asked for."""
        return parse(Tracking, self.cfg.tracking, "tracking") if self.asking.runs else None


def run(cfg: DictConfig) -> dict[str, Any]:
    """Print what to take, what it is expected to do and how far to trust that; return all of it.

    Raises:
        PilotError: an impossible question, a file that cannot be used.
        TrackingError: the user's own runs cannot be read.
    """
    engine = build(cfg.engine, "engine")
    asked = _asked(cfg)
    pod = parse(Pod, _texts(cfg.pod), "pod")
    for key in ("manifest", "page", "plot"):
        _require_place(key, getattr(asked.asking, key))
    curves: tuple[PriceCurve, ...] = ()
    found: Answered | None = None
    if engine.name == PAPER_ENGINE:
        if asked.asking.measurements is not None:
            raise ConfigError(
                "a table of measurements tells of today's engines, not of the paper's",
                given=f"engine={engine.name} measurements={asked.asking.measurements}",
                cure="leave one of them out; dataset=FILE.parquet is what engine=tgis learns from",
            )
        answer = _of_the_paper(asked)
    else:
        question = _question(asked, engine)
        with err.status("reading your runs"):
            own = dict.fromkeys((question.model.hf_id, question.model.name), question.model)
            knowledge = knowledge_of(asked.tracking, asked.asking.measurements, own)
        with err.status(f"simulating {len(question.offered)} services"):
            found = answered(question, knowledge)
        answer = found.answer
        if asked.asking.what_if:
            with err.status("moving the load and the limits"):
                curves = what_if(found.simulated, question.sla, question.asked.load, question.choosing)
    show(answer)
    if curves:
        show_what_if(curves)
    result = answer.to_dict() | {"what_if": [curve.to_dict() for curve in curves] if curves else None}
    result["price_list"] = asked.prices.to_dict()
    return result | _write(asked.asking, answer, curves, found, pod)


def _asked(cfg: DictConfig) -> _Asked:
    asking = _parsed(Asking, cfg)
    prices = catalog.composed_prices(cfg)
    profiles = profiles_at(prices, asking.catalog)
    if asking.gpus_per_pod is not None:
        profiles = [gpu for gpu in profiles if gpu.count in asking.gpus_per_pod]
    if not profiles:
        raise ConfigError(
            "no GPU profile is left to choose from",
            given=f"catalog={asking.catalog} gpus_per_pod={asking.gpus_per_pod}",
            cure="gpus_per_pod=[1,2,4,8]",
        )
    return _Asked(
        cfg,
        asking,
        _parsed(Demand, cfg),
        _parsed(Choosing, cfg),
        parse(Sla, cfg.sla, "sla"),
        prices,
        tuple(profiles),
    )


def _parsed(schema: type[F], cfg: DictConfig) -> F:
    """Return the keys of a schema that lie at the top of the configuration."""
    return parse(schema, {key: plain(cfg[key]) for key in schema.model_fields}, "recommend")


# --- today's services ------------------------------------------------------------------------------------


def _question(asked: _Asked, engine: Any) -> Question:
    """Return the question that the command line asks of today's services."""
    cfg = asked.cfg
    require_limits(asked.sla)
    workload = load_workload(cfg.workload)
    return question_of(
        catalog.build_model(cfg.model),
        str(cfg.model.get("name") or "hf"),
        asked.demand,
        asked_of(asked.demand, workload, str(cfg.workload.name)),
        sla=asked.sla,
        engines=engines_of(asked.asking.engines, engine),
        precisions=plain(cfg.precision),
        kv_precision=plain(cfg.kv_precision),
        profiles=asked.profiles,
        choosing=asked.choosing,
        prices=asked.prices.label,
        cached_share=workload.cached_share,
        seed=parse_seed(cfg.seed),
    )


# --- the paper's services --------------------------------------------------------------------------------


def _of_the_paper(asked: _Asked) -> Answer:
    """Return the answer from the paper's measurements, by the predictor of the configuration."""
    cfg, asking = asked.cfg, asked.asking
    if asked.demand.users is None or asked.demand.think_time_s:
        raise ConfigError(
            "the paper's measurements are of users who send one request after the other",
            given=f"engine={PAPER_ENGINE}, and the load in {asked.demand.unit}",
            cure="users=500 without think_time_s; engine=vllm answers for any load",
        )
    need_of(asked.demand.users, asked.sla)
    model = catalog.served_model(cfg)
    workload = load_workload(cfg.workload)
    predictor = build(cfg.predictor, "predictor")
    assert isinstance(predictor, Predictor)
    with err.status("reading measurements"):
        data = data_of(asking.dataset, asked.tracking, simulated=asking.simulated)
    fitting = f"fitting {predictor.name} on {len(data)} measurements, unless that was done before"
    if not err.is_terminal:
        note(fitting)
    with err.status(fitting):
        learned = learn(data, model, predictor, workload=str(cfg.workload.name), seed=parse_seed(cfg.seed))
    question = PaperQuestion(
        model, asked.demand.users, asked.sla, asked.profiles, str(cfg.workload.name), workload, asked.choosing
    )
    return answered_paper(question, learned, predictor.name, asked.prices.label)


# --- what is written -------------------------------------------------------------------------------------


def _write(
    asking: Asking, answer: Answer, curves: tuple[PriceCurve, ...], found: Answered | None, pod: Pod
) -> dict[str, str | None]:
    """Write what was asked for, and return where it is."""
    if asking.page is not None:
        write_text(Path(asking.page).expanduser(), redact(page(answer, curves)))
        say(f"page written: {asking.page}")
    if asking.plot is not None:
        if curves:
            title = f"{answer.question['model']}: the price of what is recommended"
            plot_what_if(curves, Path(asking.plot).expanduser(), title)
            say(f"plot written: {asking.plot}")
        else:
            note("no plot is written: it shows what_if=true", style="yellow")
    manifest = None
    if asking.manifest is not None:
        best = answer.recommended
        if best is None or best.pods is None or found is None or found.service is None:
            say(f"no manifest is written: {answer.why_not_served or 'nothing is recommended'}")
        else:
            service = found.service
            try:
                text = manifest_text(service.model, service.gpu, best.pods, pod, service.settings)
            except ConfigError as error:  # the answer is worth keeping without it
                say(f"no manifest is written: {error.wrong}; {error.cure}", style="yellow")
            else:
                write_text(Path(asking.manifest).expanduser(), text)
                say(f"manifest written: kubectl apply -f {asking.manifest}")
                manifest = asking.manifest
    return {"manifest": manifest, "page": asking.page, "plot": asking.plot if curves else None}


def _require_place(key: str, path: str | None) -> None:
    if path is None:
        return
    try:
        require_writable(Path(path).expanduser())
    except ConfigError as error:
        wrong = error.wrong.replace("result_file", key)
        raise ConfigError(wrong, given=path, cure=f"{key}=<a writable path>") from None


def _texts(node: DictConfig) -> dict[str, Any]:
    """Return the node with quantities as text: `cpu: 4` is written as a number."""
    values = {str(key): plain(value) for key, value in node.items()}
    texts = ("cpu", "memory", "cache_size")
    return values | {key: str(values[key]) for key in texts if values.get(key) is not None}
