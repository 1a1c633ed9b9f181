"""On simulated services a search finds what a ladder of every level finds, in fewer levels than doubling."""

import pytest

from llmpilot import catalog, search
from llmpilot.boundary import margin, of_ladder
from llmpilot.config import Load, Sla
from llmpilot.engine.tgis import TgisEngine
from llmpilot.loadtest import open_traffic, run_level
from llmpilot.metrics import Level, summarize
from llmpilot.search import Seen, Step
from llmpilot.simulator import VirtualService
from llmpilot.workload import load_workload

PAPER = load_workload({"name": "paper", "model": "shipped:paper"})
LAST = 1024


def service(model: str, gpu: str) -> VirtualService:
    facts, profile = catalog.models([model])[model], catalog.gpus([gpu])[gpu]
    memory = TgisEngine().memory(facts, profile)
    return TgisEngine().service(facts, profile, memory.kv_capacity_tokens)


def measured(server: VirtualService, load: Load, step: Step, sla: Sla) -> Level:
    longer = load.model_copy(update={"duration_s": load.duration_s * step.windows})
    traffic = open_traffic(longer, PAPER, 42 + step.repeat)
    return summarize(run_level(server, traffic, step.level), sla, load.unit)


@pytest.mark.parametrize(
    ("model", "gpu", "arrival", "sla", "duration_s"),
    [
        ("flan_t5_xl", "t4", "closed", Sla(), 60),
        ("llama_7b", "a100", "closed", Sla(itl_ms=None, nttft_ms=None, ttft_ms=400), 30),
        ("llama_7b", "a100", "closed", Sla(percentile=95, itl_ms=100, nttft_ms=None), 30),
        ("flan_t5_xl", "t4", "poisson", Sla(), 60),
        ("flan_t5_xl", "t4", "poisson", Sla(nttft_ms=None, e2e_ms=8000, itl_ms=None), 30),
    ],
)
def test_the_same_boundary_in_fewer_levels(
    model: str, gpu: str, arrival: str, sla: Sla, duration_s: float
) -> None:
    server, whole = service(model, gpu), arrival == "closed"
    span = {"users": [1, LAST]} if whole else {"rates_per_s": [0.5, 64]}
    load = Load.model_validate(
        {"arrival": arrival, "duration_s": duration_s, "warmup_s": 5, "search": True} | span
    )
    within, seen = search.range_of(load), list[Seen]()
    while (step := search.next_step(seen, within)) is not None:
        level = measured(server, load, step, sla)
        wanted = level["window_wanted_s"]
        seen.append(Seen(step.level, margin(level, sla), step.windows, wanted and wanted / duration_s))
    found = search.conclude(seen, within)
    stated = search.stated(found, seen, within)
    low, high = stated["interval"]
    assert stated["levels"] < 11
    assert found.boundary.kept is not None

    every = float(max(1, low // 2) if whole else low / 1.25)
    ladder = [measured(server, load, Step(every), sla)]
    while of_ladder(ladder, sla).broken is None:
        every = every + 1 if whole else every * 1.04
        ladder.append(measured(server, load, Step(every), sla))
    exhaustive = of_ladder(ladder, sla)
    assert exhaustive.kept is not None
    assert exhaustive.broken is not None
    assert low <= exhaustive.broken
    assert high is None or exhaustive.kept <= high
