"""What can be set about an emulator. Facts only."""

from dataclasses import dataclass
from typing import Annotated

from pydantic import (
    Field,
    PositiveFloat,
    PositiveInt,
    ValidationInfo,
    field_validator,
    model_validator,
)

from llmpilot.config import Facts, NonNegative, Share, VariableName

Port = Annotated[int, Field(ge=0, le=65535, strict=True)]


class FixedTiming(Facts):
    """Lock-step truth: every request's first token `ttft_ms` after its arrival, then one each `itl_ms`.

    No batching, no queue. Both null: the timing is the service's own.
    """

    ttft_ms: NonNegative | None = None
    itl_ms: NonNegative | None = None

    @model_validator(mode="after")
    def _both_or_neither(self) -> "FixedTiming":
        if (self.ttft_ms is None) != (self.itl_ms is None):
            missing = "fixed.ttft_ms" if self.ttft_ms is None else "fixed.itl_ms"
            raise ValueError(
                f"{missing} is missing: fixed timing needs both, e.g. fixed.ttft_ms=50 fixed.itl_ms=20"
            )
        return self

    @property
    def on(self) -> bool:
        """Whether the timing is fixed."""
        return self.ttft_ms is not None


class Faults(Facts):
    """What goes wrong on purpose. Shares are of generation requests, drawn with `seed` in order of arrival.

    `error_500_share` are refused at once, `reset_share` lose their connection after half of their tokens,
    `stall_share` pause there for `stall_s` real seconds. A prefill that would bring the batch weight above
    `out_of_memory_above_weight` fails its requests. /health answers 503 for the first `start_delay_s`.
    """

    error_500_share: Share = 0.0
    reset_share: Share = 0.0
    stall_share: Share = 0.0
    stall_s: NonNegative = 30.0
    out_of_memory_above_weight: PositiveInt | None = None
    start_delay_s: NonNegative = 0.0
    seed: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _one_fault_a_request(self) -> "Faults":
        total = self.error_500_share + self.reset_share + self.stall_share
        if total > 1.0:
            raise ValueError(
                "a request has at most one fault: faults.error_500_share, reset_share and stall_share "
                f"must not exceed 1 together\n  given: {total:g}"
            )
        return self


class Options(Facts):
    """How an emulator runs: where it listens, how fast, and what goes wrong.

    `port` 0 takes any free one. `speed` 10 runs ten times faster than real time. `api_key_env` names the
    environment variable that holds the API key. `send_log` is the Parquet file of true send times.
    Under fixed timing, `prefix_cache_tokens` lets answers say what a cache of so many tokens would hold of
    their prompts (null: nothing is said); a simulated engine has its own cache.
    """

    host: Annotated[str, Field(min_length=1)] = "127.0.0.1"
    port: Port = 0
    speed: PositiveFloat = 1.0
    fixed: FixedTiming = FixedTiming()
    prefix_cache_tokens: PositiveInt | None = None
    faults: Faults = Faults()
    api_key_env: VariableName | None = None
    send_log: str | None = None

    @field_validator("prefix_cache_tokens")
    @classmethod
    def _beside_fixed_timing(cls, tokens: int | None, info: ValidationInfo) -> int | None:
        if tokens is not None and not info.data.get("fixed", FixedTiming()).on:
            raise ValueError("leave it out: a simulated engine has its own cache (or fix the timing)")
        return tokens

    @field_validator("send_log")
    @classmethod
    def _parquet(cls, path: str | None) -> str | None:
        if path is not None and not path.endswith(".parquet"):
            raise ValueError("end it in .parquet: the only format it is written in")
        return path


@dataclass(frozen=True)
class Limits:
    """What one client may ask of the server before it is turned away [s, bytes, connections]."""

    head_s: float = 10.0
    body_s: float = 60.0
    idle_s: float = 75.0
    unread_s: float = 300.0
    body_bytes: int = 32 * 1024 * 1024
    connections: int = 8192
