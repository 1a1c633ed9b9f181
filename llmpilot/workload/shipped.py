"""The workload models that come with LLM-Pilot, and the `workload` part of the configuration."""

from dataclasses import replace
from math import inf
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from omegaconf import DictConfig
from pydantic import Field, model_validator

from llmpilot.config import MOST_SECONDS, Facts, NonNegative, Share, parse, plain
from llmpilot.errors import ConfigError, did_you_mean
from llmpilot.workload.conversations import Chat, ConversationSource, DrawnConversations, means_of, sample_of
from llmpilot.workload.joint import WorkloadModel, fit
from llmpilot.workload.lengths import Spread, gamma_quantiles, model_of_lengths
from llmpilot.workload.requests import from_lengths
from llmpilot.workload.sessions import TracedConversations, read_sessions
from llmpilot.workload.trace import open_trace

FOLDER = Path(__file__).parent / "models"
SHIPPED = ("paper", "production", "azure_code", "azure_conv")
PREFIX = "shipped:"
FIXED, SPREAD, CONVERSATIONS, SESSIONS = "fixed", "lengths", "conversations", "sessions"
LENGTHS = ("input_tokens", "output_tokens")
DEVIATIONS = ("input_stdev_tokens", "output_stdev_tokens")
MOST_DEVIATION = 3
"""Means: beyond it nearly all that is sent is a single token."""
Tokens = Annotated[int, Field(gt=0, le=10_000_000)]


class Workload(Facts):
    """Which workload model to draw requests from: `shipped:<name>`, a fitted one's path, `fixed`, `lengths`.

    `fixed`: every request has `input_tokens` and `output_tokens`, one sequence, decoded greedily. `lengths`:
    those are means, with a standard deviation each [tokens]; null: as large as the mean. `cached_share` of
    every prompt's tokens is in the server's cache; null: the engine's own setting says.
    """

    name: str
    model: str | None = None
    input_tokens: Tokens | None = None
    output_tokens: Tokens | None = None
    input_stdev_tokens: NonNegative | None = None
    output_stdev_tokens: NonNegative | None = None
    cached_share: Share | None = None

    @model_validator(mode="after")
    def _lengths_where_they_count(self) -> "Workload":
        for key in (*LENGTHS, *DEVIATIONS):
            given = getattr(self, key)
            if given is None or self.model == SPREAD or (self.model == FIXED and key in LENGTHS):
                continue
            raise ValueError(
                f"workload.{key}={given:g} is for lengths that are drawn around a mean: workload=lengths"
                if key in DEVIATIONS
                else f"workload.{key}={given} is for requests that are all alike: workload=fixed; or for "
                "lengths around a mean: workload=lengths; all others have lengths of their own"
            )
        return self

    @model_validator(mode="after")
    def _deviations_are_possible(self) -> "Workload":
        for key, deviation in zip(LENGTHS, DEVIATIONS, strict=True):
            mean, given = getattr(self, key), getattr(self, deviation)
            if mean is None or given is None:
                continue
            most = MOST_DEVIATION * mean if mean > 1 else 0
            if given > most:
                raise ValueError(
                    f"workload.{deviation}={given:g} is too much beside workload.{key}={mean}: "
                    f"a length is one token or more. Take at most {most}"
                )
        return self

    def spread(self, length: str, deviation: str) -> Spread:
        """Return a length's mean and standard deviation, which is the mean where it is not given."""
        mean, stdev = getattr(self, length), getattr(self, deviation)
        usual = mean if mean > 1 else 0
        return Spread(mean, usual if stdev is None else stdev)


def load_workload(node: DictConfig | dict[str, Any]) -> WorkloadModel:
    """Return the workload model that the composed `workload` part of the configuration names.

    Raises:
        ConfigError: an unknown key, no model, or an unknown shipped one; or conversations, whose requests
            are not drawn one by one.
        TraceError: the file is missing, foreign or damaged.
    """
    conversations = load_conversations(node, seed=0)
    if conversations is not None:
        raise _no_conversations(conversations, str(plain(node).get("name")))
    facts = parse(Workload, node, "workload")
    model = _model_of(facts)
    return model if facts.cached_share is None else replace(model, cached_share=facts.cached_share)


def load_conversations(node: DictConfig | dict[str, Any], seed: int) -> ConversationSource | None:
    """Return the conversations that the composed `workload` part asks for; None: requests of their own.

    Raises:
        ConfigError: an unknown key, or an impossible value.
        TraceError: the trace that they are of cannot be used.
    """
    facts = dict(plain(node))
    if facts.get("model") not in (CONVERSATIONS, SESSIONS):
        return None
    own = {key: value for key, value in facts.items() if key not in ("name", "model", "cached_share")}
    if facts.get("cached_share") is not None:
        raise ConfigError(
            "what is cached of a conversation's prompts, its turns decide",
            given=f"workload.cached_share={facts['cached_share']}",
            cure="leave it out",
        )
    if facts["model"] == CONVERSATIONS:
        return DrawnConversations(parse(Chat, own, "workload"), seed)
    settings = parse(_Traced, own, "workload")
    key = "workload.trace"
    trace = open_trace(settings.trace, timed=settings.think_time_s is None, key=key)
    if not trace.has_times:
        trace = open_trace(settings.trace, key=key)
    sessions = read_sessions(trace, key, until_s=inf)
    think_s = None
    if (mean := settings.think_time_s) is not None:
        think_s = np.rint(gamma_quantiles(mean, mean) * 1e6) / 1e6 if mean else np.zeros(1)
    return TracedConversations(
        sessions, seed, think_s=think_s, max_context_tokens=settings.max_context_tokens
    )


class _Traced(Facts):
    """The conversations of a trace."""

    think_time_s: Annotated[float, Field(ge=0, le=MOST_SECONDS)] | None = None
    max_context_tokens: Annotated[int, Field(ge=2)] | None = None
    trace: dict[str, Any] = Field(default_factory=dict)


def _no_conversations(conversations: ConversationSource, name: str) -> ConfigError:
    """Return the error where requests are drawn one by one, with what comes nearest."""
    means = means_of(sample_of(conversations))
    return ConfigError(
        "conversations are for task=characterize, tune and workload: here requests have nothing in common",
        given=f"workload={name}",
        cure="single requests of the same mean lengths, of which a cache that forgets nothing knows as much: "
        f"workload=lengths workload.input_tokens={means['input_tokens']:.0f} "
        f"workload.output_tokens={means['output_tokens']:.0f} "
        f"workload.cached_share={means['repeated_share']:.2f}",
    )


def _model_of(facts: Workload) -> WorkloadModel:
    if facts.model is None:
        raise ConfigError(
            "workload.model is missing: the path of a fitted workload model",
            cure="fit one with `python -m llmpilot task=workload trace.path=<your trace>`, then set "
            "workload.model=workload.parquet; or take a shipped one: workload=" + " | ".join(SHIPPED),
        )
    if facts.model in (FIXED, SPREAD):
        if missing := [f"workload.{key}" for key in LENGTHS if getattr(facts, key) is None]:
            example = " ".join(f"{key}=64" for key in missing)
            raise ConfigError(f"{' and '.join(missing)} is missing", cure=f"workload={facts.model} {example}")
        if facts.model == SPREAD:
            return replace(
                model_of_lengths(*map(facts.spread, LENGTHS, DEVIATIONS)), about={"name": facts.name}
            )
        alike = from_lengths(*([getattr(facts, key)] for key in LENGTHS))
        return fit(lambda: [alike], about={"name": facts.name})
    if not facts.model.startswith(PREFIX):
        return WorkloadModel.load(Path(facts.model).expanduser())
    name = facts.model.removeprefix(PREFIX)
    if name not in SHIPPED:
        raise ConfigError(
            "no such shipped workload",
            given=facts.model,
            cure=f"{did_you_mean(name, SHIPPED)}there are {', '.join(PREFIX + n for n in SHIPPED)}",
        )
    return WorkloadModel.load(FOLDER / f"{name}.parquet")
