"""How far to trust an answer to the paper's question: by the errors of the predictor where it was checked.

An LLM left out while the predictor learned was as new to it as the user's is. Of these, those that count are
of the user's kind and lay at least as far from the LLMs it had learned from.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from llmpilot.config import Gpu, Model

Level = Literal["high", "medium", "low"]
LEVELS: tuple[Level, ...] = ("high", "medium", "low")
HIGH, MEDIUM = 0.25, 0.5
"""Largest median error of latencies for these levels."""
LEFT_OUT_FILE = Path(__file__).parent / "left_out.json"
"""Errors on GPU types and GPU counts that were left out, of the published measurements (experiments/12)."""


@dataclass(frozen=True)
class PaperTrust:
    """The worst of all that speaks for or against, and each of it in a sentence."""

    level: Level
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class Evidence:
    """What the predictor learned from: the LLMs, GPU types, GPU counts and engines of its data; its errors on
    LLMs left out: rows model, gpu, count, users, nttft, itl (logs of measured / predicted); the share of its
    rows that was simulated."""

    models: dict[str, Model]
    gpus: dict[str, Gpu]
    counts: tuple[int, ...]
    engines: tuple[str, ...]
    out_of_fold: pd.DataFrame | None
    simulated: float = 0.0

    @cached_property
    def errors(self) -> dict[str, tuple[float, float]]:
        """Each LLM's median relative errors of nTTFT and ITL, predicted without it."""
        return {} if self.out_of_fold is None else errors_by_model(self.out_of_fold)

    @cached_property
    def checked(self) -> dict[str, dict[str, float]]:
        """The LLMs with such errors, by kind, and the distance of each from the nearest other of its kind."""
        return {
            kind: {
                name: min((distance(one, alike[other]) for other in alike if other != name), default=np.inf)
                for name, one in alike.items()
                if name in self.errors
            }
            for kind, alike in self.by_kind.items()
        }

    @cached_property
    def by_kind(self) -> dict[str, dict[str, Model]]:
        """The LLMs of the data, by kind."""
        kinds: dict[str, dict[str, Model]] = {}
        for name, model in self.models.items():
            kinds.setdefault(kind_of(model), {})[name] = model
        return kinds


def judge_trust(
    model: Model, recommended: Gpu | None, evidence: Evidence, measured_on: Sequence[str]
) -> PaperTrust:
    """Return how far to trust predictions of this model, and of the profile that is recommended.

    `measured_on` are the profiles that this very model was measured on (`1 x H100`).
    """
    if recommended is not None and recommended.label in measured_on:
        said: list[tuple[Level, str]] = [("high", f"this LLM was measured on {recommended.label}")]
    else:
        said = [_of_the_model(model, evidence, measured_on)]
        said += [] if recommended is None else _of_the_profile(recommended, evidence)
    if evidence.engines:
        said.append(
            ("high", f"the data were measured with {', '.join(evidence.engines)}: other engines differ")
        )
    worst = max((level for level, _ in said), key=LEVELS.index)
    return PaperTrust(worst, tuple(reason for _, reason in said))


def kind_of(model: Model) -> str:
    """Return what sets LLMs apart more than their size does."""
    experts = "mixture-of-experts " if model.n_experts > 1 else ""
    if model.encoder_decoder:
        return f"{experts}encoder-decoder"
    attention = "" if model.flash_attention else "without flash attention"
    return f"{experts}decoder {attention}".strip()


def distance(one: Model, other: Model) -> float:
    """Return the Euclidean distance of the logs of parameters, layers, width and KV cache per token.

    1 is a factor of e in one of them.
    """
    return float(np.linalg.norm(_features(one) - _features(other)))


def _features(model: Model) -> Any:
    return np.log(
        [
            model.active_parameters_b,
            model.n_layers,
            model.d_model,
            model.kv_bytes_per_token,
            model.weight_bytes,
        ]
    )


# --- the model -------------------------------------------------------------------------------------------


def _of_the_model(model: Model, evidence: Evidence, measured_on: Sequence[str]) -> tuple[Level, str]:
    errors = evidence.errors
    if not errors:
        return "low", "this predictor has not been checked on LLMs left out"
    kind = kind_of(model)
    alike = evidence.by_kind.get(kind)
    if alike is None:
        return "low", f"no {kind} LLM is in the data: how wrong predictions of one are is not known"
    near = min(alike, key=lambda name: distance(model, alike[name]))
    away = distance(model, alike[near])
    gaps = evidence.checked[kind]
    as_far = [name for name, gap in gaps.items() if gap >= away]
    where = f"the nearest {kind} LLM in the data is {near}, at a distance of {away:.2f} (a factor of e is 1)"
    if measured_on:
        where += f"; this one was itself measured on {', '.join(measured_on)}"
    if not as_far:
        farthest = max(gaps.values(), default=0.0)
        level: Level = "medium" if measured_on else "low"
        return level, f"{where}: farther than any that predictions were checked on ({farthest:.2f})"
    nttft, itl = _typical([errors[name] for name in as_far])
    who = (
        f"{len(as_far)} of its kind that lay as far or farther were"
        if len(as_far) > 1
        else f"{as_far[0]}, the only one of its kind that lay as far, was"
    )
    level = _level(max(nttft, itl))
    if len(as_far) == 1 and level == "high":
        level = "medium"  # one LLM's luck is no rule
    return level, f"{where}: left out, {who} predicted with {_in_words(nttft, itl)}"


def errors_by_model(out_of_fold: pd.DataFrame) -> dict[str, tuple[float, float]]:
    """Return each LLM's median relative errors of nTTFT and ITL, predicted without it."""
    errors = {}
    for name, rows in out_of_fold.groupby("model"):
        nttft, itl = np.expm1(np.median(np.abs(rows[["nttft", "itl"]].to_numpy(dtype=float)), axis=0))
        errors[str(name)] = (float(nttft), float(itl))
    return errors


def _typical(errors: Iterable[tuple[float, float]]) -> tuple[float, float]:
    table = np.array(list(errors))
    return float(np.median(table[:, 0])), float(np.median(table[:, 1]))


def _level(error: float) -> Level:
    return "high" if error <= HIGH else "medium" if error <= MEDIUM else "low"


# --- the GPU profile -------------------------------------------------------------------------------------


def _of_the_profile(gpu: Gpu, evidence: Evidence) -> list[tuple[Level, str]]:
    said: list[tuple[Level, str]] = []
    vendors = sorted({one.vendor for one in evidence.gpus.values()})
    if gpu.vendor not in vendors:
        checked = f"only GPUs of {', '.join(vendors)} were, and errors on types left out are theirs"
        said.append(("low", f"no GPU of {gpu.vendor} was measured: {checked}"))
    if gpu.name not in {one.name for one in evidence.gpus.values()}:
        said.append(_unseen(f"no {gpu.name} is in the data", "GPU types", "gpu_types"))
    if gpu.count > max(evidence.counts):
        said.append(_unseen(f"no profile of {gpu.count} GPUs is in the data", "those of 4 GPUs", "most_gpus"))
    return said or [("high", f"the data hold {gpu.name}, and profiles of as many GPUs")]


def _unseen(what: str, left_out_too: str, key: str) -> tuple[Level, str]:
    nttft, itl = left_out()[key]["nttft"], left_out()[key]["itl"]
    return _level(max(nttft, itl)), (
        f"{what}: of the published measurements, {left_out_too} left out together with the LLM were "
        f"predicted with {_in_words(nttft, itl)}"
    )


def _in_words(nttft: float, itl: float) -> str:
    return f"median errors of {nttft:.0%} (nTTFT) and {itl:.0%} (ITL)"


@cache
def left_out() -> dict[str, dict[str, float]]:
    """Return median relative errors of nttft and itl for GPU types and for the largest GPU count left out."""
    found: dict[str, dict[str, float]] = json.loads(LEFT_OUT_FILE.read_text(encoding="utf-8"))
    return found
