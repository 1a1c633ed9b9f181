"""The steady state of a service under a closed loop, without simulating it: its steps on average.

In a closed loop as many requests begin as end, so a step holds, besides the sequences that decode, now and
then the chunks of a prompt. That is enough for the mean time per output token, close to the simulation's, in
microseconds instead of milliseconds: factors are fitted with it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from llmpilot.simulator.step_model import PARTS, BatchArrays, Numbers, StepModel

LEAST_CHUNK_TOKENS = 512
"""However many sequences decode, a step keeps so much room for prompts."""
ROUNDS = 4
"""The share of time that a request decodes and the step's length depend on each other: so often in turns."""
_ATTENTION, _SEQUENCE = PARTS.index("decode_attention"), PARTS.index("sequence")


@dataclass(frozen=True)
class ClosedLoads:
    """Closed-loop loads, arrays [n] each: mean tokens of a request, how many requests run at once on average
    where none waits for memory, and the tokens that one step may hold."""

    input_tokens: Numbers
    output_tokens: Numbers
    running: Numbers
    step_tokens: Numbers


@dataclass(frozen=True)
class SteadyParts:
    """What steps cost, part by part [n, parts], before factors: with nothing but decodes; with chunks of
    prompts besides; of a single sequence. `share` is how many steps have chunks, were decoding all that
    requests do; `chunks` are how many such a step has, `chunk_tokens` their length."""

    loads: ClosedLoads
    decode: Numbers
    mixed: Numbers
    single: Numbers
    share: Numbers
    chunks: Numbers
    chunk_tokens: Numbers


def steady_parts(service: StepModel, loads: ClosedLoads) -> SteadyParts:
    """Return what the steps of a service are made of under each of the loads."""
    running, output = loads.running, loads.output_tokens
    room = np.maximum(loads.step_tokens - running, LEAST_CHUNK_TOKENS)
    chunk = np.minimum(loads.input_tokens, room)
    begun = running / output  # requests that begin at each step
    chunks = np.maximum(1.0, np.minimum(np.floor(room / chunk), begun))
    context = loads.input_tokens + output / 2
    none = np.zeros_like(running)
    decode = (running, running * context, none, none, none)
    mixed = (running, running * context, chunk * chunks, chunks * chunk * chunk / 2, chunks)
    single = (none + 1.0, context, none, none, none)
    alone, both, one = _parts(service, (decode, mixed, single))
    return SteadyParts(
        loads,
        alone,
        both,
        one,
        np.minimum(1.0, begun * loads.input_tokens / (chunk * chunks)),
        chunks,
        chunk,
    )


def _parts(service: StepModel, batches: Sequence[tuple[Numbers, ...]]) -> list[Numbers]:
    """Return what batches of each kind are made of [n, parts]: asking operators takes longer than reckoning,
    and of plain numbers they are quicker than of arrays."""
    if len(batches[0][0]) == 1:
        numbers = [BatchArrays(*(float(values[0]) for values in one)) for one in batches]
        return [service.parts(one)[None] for one in numbers]
    together = BatchArrays(*(np.concatenate(same) for same in zip(*batches, strict=True)))
    return np.split(service.parts(together).T, len(batches))


def time_per_output_token(parts: SteadyParts, multipliers: Numbers) -> Numbers:
    """Return the mean time per output token [n] ms; `multipliers` [n or 1, parts + 1] as in `factors`.

    A request decodes only a share of its time; attention over its context and the host's work for it count by
    that share.
    """
    weights, prefill = multipliers[..., :-1], multipliers[..., -1]
    loads = parts.loads
    alone = weights * parts.decode
    added = prefill * np.maximum((weights * (parts.mixed - parts.decode)).sum(-1), 0.0)
    attention, single = alone[:, _ATTENTION], (weights * parts.single)[:, _ATTENTION]
    sequences = alone[:, _SEQUENCE]
    rest = alone.sum(-1) - attention - sequences
    decoding = np.ones_like(loads.running)
    step = rest
    for _ in range(ROUNDS):
        base = rest + single + (attention - single) * decoding
        base = base + sequences * np.maximum(decoding, 1.0 / loads.running)
        step = base + np.minimum(parts.share * decoding, 1.0) * added
        waiting = loads.input_tokens / parts.chunk_tokens * (base + added / parts.chunks)
        decoding = loads.output_tokens * step / (loads.output_tokens * step + waiting)
    return np.asarray(step)
