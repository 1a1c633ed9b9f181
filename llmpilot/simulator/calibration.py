"""Calibrations, what a service's step times and cap were found to be: their tables and their use.

How they are found is `calibration_fit`'s business.
"""

import csv
from dataclasses import asdict, dataclass, fields
from functools import cache
from pathlib import Path

from llmpilot.config import Gpu, Model
from llmpilot.errors import ConfigError
from llmpilot.files import write_text
from llmpilot.simulator.batching import BatchingRule
from llmpilot.simulator.service import TgisService
from llmpilot.simulator.steptime import StepTimes, attention_times, expert_times

SHIPPED = Path(__file__).parent / "fitted" / "all_levels.csv"
"""Fitted on the LLM-Pilot paper's measurements (IBM/LLM-performance-prediction, CDLA-Permissive-2.0)."""
THREE_LEVELS = SHIPPED.with_name("three_levels.csv")
"""The same fitted on 1, 8 and 64 users only, to be judged on the other levels."""
MAX_WAITING_STEPS = 12
OVERTAKE_MS = 1000.0


@dataclass(frozen=True)
class Calibration:
    """One (model, GPU profile) pair's fitted coefficients [ms], and the batch weight it ran under [tokens].

    A decode step of n sequences takes `decode_ms` + n `decode_ms_per_sequence`, plus `join_ms` + n
    `join_ms_per_sequence` where it follows a prefill; a prefill of n requests of t input tokens takes
    `prefill_ms` + n `prefill_ms_per_request` + max(t `prefill_ms_per_token`, `decode_ms`). On top come, from
    the datasheet, attention over the contexts, experts that further tokens hit, and the point where a batch
    gets so large that computing takes longer than reading the weights.
    """

    model: str
    gpu: str
    count: int
    decode_ms: float
    decode_ms_per_sequence: float
    prefill_ms: float
    prefill_ms_per_request: float
    prefill_ms_per_token: float
    join_ms: float
    join_ms_per_sequence: float
    max_batch_weight: float
    request_overhead_ms: float

    @property
    def pair(self) -> tuple[str, str, int]:
        """(model, GPU, count): the names in their facts."""
        return self.model, self.gpu, self.count

    def step_times(self, model: Model, gpu: Gpu) -> StepTimes:
        """Return the step times; `model` and `gpu` (with its count) give what attention costs."""
        kv_ms_per_token, prefill_ms_per_token_squared = attention_times(model, gpu)
        expert_ms, compute_ms = expert_times(model, gpu)
        hit_by_one = expert_ms * model.experts_per_token / model.n_experts
        return StepTimes(
            dense_weights_ms=max(0.0, self.decode_ms - hit_by_one),
            expert_weights_ms=expert_ms,
            n_experts=model.n_experts,
            experts_per_token=model.experts_per_token,
            decode_ms_per_sequence=compute_ms,
            decode_overhead_ms=0.0,
            decode_overhead_ms_per_sequence=self.decode_ms_per_sequence,
            kv_ms_per_token=kv_ms_per_token,
            communication_ms_per_token=0.0,
            prefill_overhead_ms=self.prefill_ms,
            prefill_overhead_ms_per_request=self.prefill_ms_per_request,
            prefill_ms_per_token=self.prefill_ms_per_token,
            prefill_ms_per_token_squared=prefill_ms_per_token_squared,
            join_ms=self.join_ms,
            join_ms_per_sequence=self.join_ms_per_sequence,
        )

    def service(self, model: Model, gpu: Gpu, max_waiting_steps: int = MAX_WAITING_STEPS) -> TgisService:
        """Return the calibrated service under the batch weight that it was measured with."""
        rule = BatchingRule(
            max_batch_weight=round(self.max_batch_weight),
            max_waiting_steps=max_waiting_steps,
            overtake_ms=OVERTAKE_MS,
            padded=not model.flash_attention,
        )
        return TgisService(self.step_times(model, gpu), rule, UNLIMITED, self.request_overhead_ms)


UNLIMITED = 1 << 50
"""KV tokens: the recordings' memory is not known, their caps are."""
COLUMNS = [field.name for field in fields(Calibration)]


def read_calibrations(path: Path) -> dict[tuple[str, str, int], Calibration]:
    """Return the calibrations in a CSV file by (model, GPU, count).

    Raises:
        ConfigError: no such file, or it is no table of calibrations.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(line for line in file if not line.startswith("#")))
        if not rows:
            raise ValueError("it has no rows")
        found = [
            Calibration(
                model=row["model"],
                gpu=row["gpu"],
                count=int(row["count"]),
                **{name: float(row[name]) for name in COLUMNS[3:]},
            )
            for row in rows
        ]
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise ConfigError(
            "this is no table of calibrations",
            given=f"{path}: {error}",
            cure="take a file that task=calibrate wrote, or engine.calibration=auto",
        ) from None
    return {calibration.pair: calibration for calibration in found}


@cache
def shipped_calibrations() -> dict[tuple[str, str, int], Calibration]:
    """Return the calibrations that come with the package."""
    return read_calibrations(SHIPPED)


def write_calibrations(path: Path, calibrations: list[Calibration], comment: str) -> None:
    """Write a table that `read_calibrations` reads: figures to five digits, `comment` lines on top."""
    lines = [f"# {line}" for line in comment.splitlines()]
    lines.append(",".join(COLUMNS))
    for calibration in sorted(calibrations, key=lambda c: c.pair):
        values = asdict(calibration).values()
        lines.append(",".join(f"{value:.5g}" if isinstance(value, float) else str(value) for value in values))
    write_text(path, "\n".join(lines) + "\n")
