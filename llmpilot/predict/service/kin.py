"""What is known of a service by its kin in the data, in words, and how far off such predictions were."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from llmpilot.architecture import (
    CompressedAttention,
    Experts,
    LatentAttention,
    LinearAttention,
    StateSpace,
)
from llmpilot.config import Model
from llmpilot.simulator.factors import family_of, service_key
from llmpilot.simulator.service_scales import ServiceScales
from llmpilot.simulator.step_model import StepModel

Case = Literal["service", "configuration", "model", "kind", "gpu", "datasheet"]
"""What predictions did not know: the level of a measured service; its service and lengths; its LLM; all LLMs
of its kind; its GPU type; its GPU type and the tables of its kernels."""
Trust = Literal["high", "medium", "low"]
ORDER: tuple[Trust, ...] = ("low", "medium", "high")
TRUST: Mapping[Case, Trust] = {
    "service": "high",
    "configuration": "medium",
    "model": "medium",
    "kind": "low",
}
ROUNDING = 1.05
"""Lengths up to so many times the longest measured are not beyond them."""


@dataclass(frozen=True)
class Errors:
    """How far off predictions were that did not know what was left out.

    `tpot` and `ttft` are medians of |predicted / measured - 1|; `tpot_within_80` the share of rows inside the
    80% interval of their TPOT.
    """

    rows: int
    tpot: float
    tpot_within_80: float
    ttft: float | None


@dataclass(frozen=True)
class Covered:
    """What the rows are of: LLMs (kind by family), GPU types, and the longest mean lengths [tokens]."""

    kinds: Mapping[str, str]
    gpus: tuple[str, ...]
    input_tokens: float
    output_tokens: float


@dataclass(frozen=True)
class Kin:
    """What a service's prediction rests on.

    `words` says it in a clause; `remarks` are what else makes it less sure, a sentence each. `tpot_error`
    and `ttft_error` are how far off predictions were that knew no more; None where that was never judged.
    """

    case: Case
    trust: Trust
    words: str
    remarks: tuple[str, ...]
    tpot_error: float | None
    ttft_error: float | None


def kind_of(model: Model) -> str:
    """Return the architecture of an LLM in words: what sets its layers apart from dense softmax attention."""
    mixers = {type(mixer) for layer in model.layer_kinds for mixer in layer.mixers}
    named = (
        (CompressedAttention, "compressed attention"),
        (LatentAttention, "latent attention"),
        (StateSpace, "state-space layers"),
        (LinearAttention, "linear attention"),
    )
    for mixer, name in named:
        if mixer in mixers:
            return name
    experts = any(isinstance(layer.feed_forward, Experts) for layer in model.layer_kinds)
    return "mixture of experts" if experts else "dense"


def by_datasheet(service: StepModel) -> bool:
    """Whether a service's GPU type is known by its datasheet only: no table of its chip's kernels is."""
    return service.gpu.profile is None and not service.operators.own


def kin_of(
    service: StepModel,
    scales: ServiceScales,
    covered: Covered,
    errors: Mapping[Case, Errors],
    own: Mapping[str, int],
) -> Kin:
    """Return what a service's prediction rests on. `own` counts the user's levels by `service_key`."""
    key, family = service_key(service), family_of(service.model)
    residuals = scales.families.get(family, ())
    itself = sum(one.levels for one in residuals if one.place.key == key)
    related = {key.split(" | ")[0] for key in own}
    case: Case
    if itself or key in own:
        case = "service"
        by = " and ".join(
            f"{n} {'level' if n == 1 else 'levels'}{of}"
            for n, of in ((itself, ""), (own.get(key, 0), " of your own"))
            if n
        )
        words = f"this service was measured ({by})"
    elif residuals or family in related:
        case = "configuration"
        n = len({one.place.key for one in residuals} | {one for one in own if one.startswith(f"{family} | ")})
        several = "configuration of this LLM was" if n == 1 else "configurations of this LLM were"
        words = f"{n} other {several} measured"
    else:
        kind = kind_of(service.model)
        n = sum(one == kind for one in covered.kinds.values())
        case = "model" if n else "kind"
        alike = f"{n} {'LLM' if n == 1 else 'LLMs'} of its kind ({kind}) {'was' if n == 1 else 'were'}"
        words = f"this LLM was not measured; {alike if n else f'nor was any other of its kind ({kind})'}"
    cases: list[Case] = [case]
    trust, remarks = TRUST[case], []
    gpu = service.gpu
    if gpu.name not in covered.gpus and case != "service":
        if by_datasheet(service):
            cases.append("datasheet")
            trust = "low"
            remarks.append(
                f"{gpu.name} is known by its datasheet only: neither its kernels nor a service on it "
                "were measured"
            )
        else:
            cases.append("gpu")
            trust = _least(trust, "medium")
            remarks.append(f"no service was measured on {gpu.name}, only kernels of its chip")
    judged = [errors[name] for name in cases if name in errors]
    return Kin(
        case,
        trust,
        words,
        tuple(remarks),
        max((one.tpot for one in judged), default=None),
        max((one.ttft for one in judged if one.ttft is not None), default=None),
    )


def with_lengths(kin: Kin, covered: Covered, input_tokens: float, output_tokens: float) -> Kin:
    """Return the same of requests of these mean lengths, which may be beyond all measured ones."""
    beyond = [
        f"{name} of {asked:,.0f} tokens are longer than all that were measured (up to {most:,.0f})"
        for name, asked, most in (
            ("prompts", input_tokens, covered.input_tokens),
            ("outputs", output_tokens, covered.output_tokens),
        )
        if asked > ROUNDING * most
    ]
    if not beyond:
        return kin
    return Kin(kin.case, "low", kin.words, (*kin.remarks, *beyond), kin.tpot_error, kin.ttft_error)


def _least(a: Trust, b: Trust) -> Trust:
    return min(a, b, key=ORDER.index)
