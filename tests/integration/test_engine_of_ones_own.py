"""An engine that the package does not know, added as CONTRIBUTING.md says: a class and an option."""

import re
import sys
from pathlib import Path
from typing import Any, ClassVar

import dummy_server
import pytest
from conftest import Run
from dummy_server import DummyEngine
from pydantic import PositiveFloat
from tracked import client_here, read

from llmpilot.config import Gpu, Model
from llmpilot.engine.inference import InferenceEngine
from llmpilot.engine.openai import OpenAIEngine
from llmpilot.engine.server import Assignment, Command, ServerMetrics, StartedEngine
from llmpilot.simulator import BatchingRule, StepTimes, TgisService
from llmpilot.sizing import MemoryPlan, plan_memory

CELL = ("+gpu=a100", "+model=starcoder", "load.users=[1,4]", "load.duration_s=10", "load.warmup_s=1")


class Metronome(InferenceEngine):
    """Its steps are all equally long."""

    name: ClassVar[str] = "metronome"
    places: ClassVar[tuple[str, ...]] = ("simulated",)
    memory_is_allocated_at_start: ClassVar[bool] = True

    step_ms: PositiveFloat = 10.0

    def memory(self, model: Model, gpu: Gpu) -> MemoryPlan:
        return plan_memory(model, gpu)

    def service(self, model: Model, gpu: Gpu, max_batch_weight: int) -> TgisService:
        nothing = dict.fromkeys(StepTimes.__dataclass_fields__, 0)
        each = {"n_experts": 1, "decode_overhead_ms": self.step_ms, "prefill_overhead_ms": self.step_ms}
        return TgisService(
            StepTimes(**(nothing | each)),
            BatchingRule(max_batch_weight=max_batch_weight),
            self.memory(model, gpu).kv_capacity_tokens,
        )

    def simulated_facts(self, model: Model, gpu: Gpu) -> dict[str, Any]:
        return {"beat": {"ms": self.step_ms}}

    def simulated_from(self, model: Model, gpu: Gpu) -> str:
        return f"a metronome of {self.step_ms:g} ms"


class Dummy(StartedEngine):
    """A server of standard library only."""

    name: ClassVar[str] = "dummy"
    metrics: ClassVar[ServerMetrics] = DummyEngine.metrics
    out_of_memory: ClassVar[re.Pattern[str]] = DummyEngine.out_of_memory

    @property
    def wire(self) -> OpenAIEngine:
        return OpenAIEngine(dialect="llamacpp")

    def served_model(self, model: Model) -> str:
        return "dummy"

    def command(self, assignment: Assignment) -> Command:
        return Command((sys.executable, "-I", "-S", dummy_server.__file__, str(assignment.port)))


@pytest.fixture
def options(workdir: Path) -> str:
    """A folder of options of one's own."""
    folder = workdir / "options" / "engine"
    folder.mkdir(parents=True)
    (folder / "metronome.yaml").write_text(f"_target_: {__name__}.Metronome\nstep_ms: 10\n")
    (folder / "dummy.yaml").write_text(f"_target_: {__name__}.Dummy\n")
    return str(folder.parent)


def test_it_is_simulated(run: Run, options: str) -> None:
    ran = run("--config-dir", options, *CELL, "engine=metronome", "engine.step_ms=20", "result_file=r.json")
    assert ran.code == 0, ran.err
    assert "a metronome of 20 ms" in ran.out.splitlines()[0]
    result = read("r.json")
    assert (result["engine"], result["measurement"]) == ("metronome", "simulated")
    assert result["levels"][0]["itl_ms"]["p50"] == 20
    assert result["max_batch_weight_from"] == "tuned"
    run_of_it = client_here().get_run(result["run_id"])
    assert run_of_it.data.params["beat.ms"] == "20.0"


def test_more_than_its_memory_fails_at_start(run: Run, options: str) -> None:
    ran = run(f"--config-dir={options}", *CELL, "engine=metronome", "max_batch_weight=10_000_000")
    assert ran.code == 2
    assert "metronome (simulated) has no room for a KV cache of 10,000,000 tokens" in ran.err


def test_it_is_started(run: Run, options: str) -> None:
    ran = run(
        *("--config-dir", options, "+gpu=a100", "+model=starcoder", "engine=dummy", "deployment=process"),
        *("load.users=[1]", "load.duration_s=0.5", "load.warmup_s=0.1", "load.drain_s=5", "tuner=none"),
        "deployment.client.calibrate=false",
        *("workload=fixed", "workload.input_tokens=8", "workload.output_tokens=4", "result_file=r.json"),
    )
    assert ran.code == 0, ran.err
    result = read("r.json")
    assert (result["engine"], result["measurement"]) == ("dummy", "measured")
    assert result["levels"][0]["requests_ok"] > 0


def test_a_place_that_it_has_not_is_refused(run: Run, options: str) -> None:
    ran = run("--config-dir", options, *CELL, "engine=metronome", "deployment=process")
    assert ran.code == 2
    assert "engine=metronome does not run in deployment=process" in ran.err
    assert "engine=metronome deployment=simulated" in ran.err


def test_a_misspelt_option_of_ones_own_gets_a_suggestion(run: Run, options: str) -> None:
    ran = run("--config-dir", options, *CELL, "engine=metronom")
    assert ran.code == 2
    assert "did you mean 'metronome'?" in ran.err
