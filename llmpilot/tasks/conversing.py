"""What tasks do with conversations: whether a service can be put under them, and what they are like."""

from math import ceil
from typing import Any

import numpy as np
from rich.table import Table

from llmpilot.config import Model
from llmpilot.console import note
from llmpilot.deploy.place import Place
from llmpilot.engine.inference import InferenceEngine
from llmpilot.errors import ConfigError
from llmpilot.workload import ConversationSource
from llmpilot.workload.conversations import SAMPLED, means_of, sample_of

FEW = 512
"""Conversations that are looked at for how long they last."""


def require_conversations(
    conversations: ConversationSource,
    engine: InferenceEngine,
    deployment: Place,
    *,
    model: Model | None,
    cached_share: float | None,
) -> None:
    """Raise ConfigError where conversations cannot be held; say so where the engine forgets every prompt.

    Raises:
        ConfigError: the model takes no prompts so long, or the engine is told what share of each prompt is
            cached.
    """
    told = {"engine.prefix_hit_share": getattr(engine, "prefix_hit_share", 0.0)}
    told["workload.cached_share"] = cached_share or 0.0
    if given := " ".join(f"{key}={share:g}" for key, share in told.items() if share):
        raise ConfigError(
            "what is cached of a conversation's prompts, its turns decide",
            given=given,
            cure="leave it out",
        )
    longest = conversations.longest_tokens
    if model is not None and longest > (model.max_positions or longest):
        raise ConfigError(
            f"conversations come to {longest:,} tokens, and {model.name} takes {model.max_positions:,}",
            cure=f"workload.max_context_tokens={model.max_positions}",
        )
    if not engine.finds_prefixes and deployment.starts_services:
        enable = getattr(type(engine), "model_fields", {}).get("enable_prefix_caching")
        cure = ": engine.enable_prefix_caching=true keeps it" if enable else ""
        note(f"engine={engine.name} keeps nothing of a conversation between its turns{cure}", style="yellow")


def note_short_warm_up(source: ConversationSource, warmup_s: float) -> None:
    """Say so where the window begins before conversations have come to their later turns."""
    thought_s = [source.conversation(number).think_s.sum() for number in range(FEW)]
    lasts_s = ceil(float(np.percentile(thought_s, 90)))
    if warmup_s < lasts_s:
        note(
            f"in a tenth of the conversations users think for {lasts_s} s and more, and all begin anew with "
            f"each level: after a warm-up of {warmup_s:g} s late turns are rare; load.warmup_s={lasts_s}",
            style="yellow",
        )


def described(source: ConversationSource, name: str) -> tuple[dict[str, Any], Table]:
    """Return what conversations are like, as JSON values and as a table."""
    sample = sample_of(source)
    means = means_of(sample)
    table = Table(title=f"workload {name}: the first {SAMPLED:,} conversations")
    for heading in ("", "mean", "p50", "p95", "largest"):
        table.add_column(heading, justify="right" if heading else "left")
    for key, values in sample.items():
        figures = (
            [*np.percentile(values, (50, 95)).tolist(), float(values.max())] if len(values) else [0.0] * 3
        )
        table.add_row(key, *(f"{figure:,.4g}" for figure in (means[key], *figures)))
    table.caption = (
        f"{means['repeated_share']:.0%} of the prompts' tokens were sent before: a system prompt of "
        f"{source.system_tokens:,} tokens, and what was said; the longest turn has {source.longest_tokens:,}"
    )
    result = {
        "workload": name,
        "conversations": SAMPLED,
        "mean": means,
        "system_prompt_tokens": source.system_tokens,
        "heaviest_weight_tokens": source.longest_tokens,
        "content_hash": source.content_hash,
    }
    return result, table
