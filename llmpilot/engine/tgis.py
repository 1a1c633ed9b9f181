"""IBM's TGIS of 2023, the engine of the paper: its batching, on calibrated step times or on physics."""

from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import Field, PositiveInt

from llmpilot.config import Gpu, Model, NonNegative, Share
from llmpilot.engine.inference import InferenceEngine
from llmpilot.errors import ConfigError
from llmpilot.simulator import BatchingRule, TgisService, VirtualService
from llmpilot.simulator.calibration import (
    MAX_WAITING_STEPS,
    OVERTAKE_MS,
    Calibration,
    read_calibrations,
    shipped_calibrations,
)
from llmpilot.simulator.physics import predict, shipped_factors
from llmpilot.sizing import MemoryPlan, plan_memory


class TgisEngine(InferenceEngine):
    """Turns (model, GPU profile, max batch weight) into a service that runs in virtual time: only simulated.

    `calibration` says where step times come from: `auto` takes the pair's own where it was measured and
    physics fitted on those measured elsewhere; `physics` takes only these; a path takes a table that
    task=calibrate wrote, and `auto` for pairs that are not in it.
    """

    name: ClassVar[str] = "tgis"
    places: ClassVar[tuple[str, ...]] = ("simulated",)
    live_weight: ClassVar[bool] = True
    memory_is_allocated_at_start: ClassVar[bool] = False
    memory_settings: ClassVar[tuple[str, ...]] = ("memory_utilization", "reserve_gb_per_gpu")

    calibration: str = "auto"
    memory_utilization: Share = 0.95
    reserve_gb_per_gpu: NonNegative = 0.5
    max_batch_size: PositiveInt | None = None
    max_waiting_steps: Annotated[int, Field(ge=0)] = MAX_WAITING_STEPS
    overtake_ms: NonNegative = OVERTAKE_MS
    request_overhead_ms: NonNegative | None = None

    def memory(self, model: Model, gpu: Gpu) -> MemoryPlan:
        """Return where the profile's memory goes under this engine.

        Raises:
            ConfigError: the model's weights or KV cache are quantized, which this engine did not know.
        """
        _require_bf16(model)
        return plan_memory(
            model,
            gpu,
            memory_utilization=self.memory_utilization,
            reserve_gb_per_gpu=self.reserve_gb_per_gpu,
        )

    def calibrated(self, model: Model, gpu: Gpu) -> tuple[Calibration, str]:
        """Return the pair's calibration, and in words where it comes from.

        Raises:
            ConfigError: `calibration` names a file that is no table of calibrations, there is gpu.profile,
                or the model is quantized.
        """
        _require_bf16(model)
        if gpu.profile is not None:
            raise ConfigError(
                "engine=tgis is simulated without operators: gpu.profile would change nothing",
                given=f"gpu.profile={gpu.profile}",
                cure="engine=vllm, or leave gpu.profile out",
            )
        pair = (model.name, gpu.name, gpu.count)
        if self.calibration not in ("auto", "physics"):
            own = _read(Path(self.calibration).expanduser())
            if pair in own:
                return own[pair], f"calibrated by {self.calibration}"
        if self.calibration != "physics" and pair in shipped_calibrations():
            return shipped_calibrations()[pair], "calibrated on the published measurements of this pair"
        return predict(
            shipped_factors(), model, gpu
        ), "physics fitted on published measurements of other pairs"

    def default_max_batch_weight(self, model: Model, gpu: Gpu) -> int:
        """Return the cap when none is given: what the pair ran under, or would have, within its KV cache."""
        calibration, _ = self.calibrated(model, gpu)
        return max(1, min(round(calibration.max_batch_weight), self.memory(model, gpu).kv_capacity_tokens))

    def service(self, model: Model, gpu: Gpu, max_batch_weight: int) -> TgisService:
        """Return the service as the simulator needs it."""
        calibration, _ = self.calibrated(model, gpu)
        rule = BatchingRule(
            max_batch_weight=max_batch_weight,
            max_batch_size=self.max_batch_size,
            max_positions=model.max_positions,
            max_waiting_steps=self.max_waiting_steps,
            overtake_ms=self.overtake_ms,
            padded=not model.flash_attention,
        )
        overhead_ms = self.request_overhead_ms
        return TgisService(
            step_times=calibration.step_times(model, gpu),
            rule=rule,
            kv_capacity_tokens=self.memory(model, gpu).kv_capacity_tokens,
            request_overhead_ms=calibration.request_overhead_ms if overhead_ms is None else overhead_ms,
        )

    def reweighted(self, service: VirtualService, max_batch_weight: int) -> TgisService:
        """Return a running service under another max batch weight: nothing of it need be started anew."""
        assert isinstance(service, TgisService)
        rule = service.rule.model_copy(update={"max_batch_weight": max_batch_weight})
        return replace(service, rule=rule)

    def simulated_facts(self, model: Model, gpu: Gpu) -> dict[str, Any]:
        """Return the calibration that step times come from."""
        calibration, source = self.calibrated(model, gpu)
        return {"calibration": {"source": source, **asdict(calibration)}}

    def simulated_from(self, model: Model, gpu: Gpu) -> str:
        """Return in words where step times come from."""
        return f"IBM's TGIS of 2023, {self.calibrated(model, gpu)[1]}"


def _require_bf16(model: Model) -> None:
    for key, whose, form in (
        ("precision", "weights are", model.precision),
        ("kv_precision", "KV cache is", model.kv_format),
    ):
        if form != "bf16":
            raise ConfigError(
                "engine=tgis, the engine of 2023, has no step times of quantized models",
                given=f"{model.name}, whose {whose} in {form}",
                cure=f"engine=vllm, or {key}=bf16",
            )


@cache
def _read(path: Path) -> dict[tuple[str, str, int], Calibration]:
    return read_calibrations(path)
