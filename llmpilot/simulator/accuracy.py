"""How far the simulator is from recorded services: calibrated pairs, LLMs and GPUs left out. No I/O.

The error of a figure is |simulated / recorded - 1|.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from llmpilot import catalog
from llmpilot.config import Gpu, Model
from llmpilot.processes import Map
from llmpilot.simulator.calibration import Calibration
from llmpilot.simulator.calibration_fit import Fit, fit_pair
from llmpilot.simulator.physics import Factors, fit_factors, predict
from llmpilot.simulator.recordings import Recording, Summary
from llmpilot.simulator.replay import replay

FITTED_LEVELS = (1, 8, 64)
"""Users of the levels that a calibrated pair may see; it is judged on the others."""
FAILURES_ALLOWED = 0.01
"""Levels that lost more requests than this are reported apart as well."""
CALIBRATED = ("itl_ms_p50", "ttft_ms_p50", "throughput_tok_s", "itl_ms_p95", "ttft_ms_p95")
UNSEEN = ("itl_ms_p50", "nttft_ms_p50")

Pair = tuple[str, str, int]


@dataclass(frozen=True)
class Judged:
    """One recorded level and what was simulated for it."""

    recording: Recording
    simulated: Summary

    def error(self, name: str) -> float:
        """Return |simulated / recorded - 1| of one figure; 1 where one of the two has none."""
        simulated, recorded = self.simulated[name], self.recording.truth[name]
        return abs(simulated / recorded - 1.0) if simulated > 0 and recorded > 0 else 1.0


@dataclass(frozen=True)
class Tables:
    """All that was fitted: calibrations of three levels and of all, factors of all pairs and of each fold.

    `unseen_llm` and `unseen_gpu` hold the factors found without one LLM or one GPU type, by its name.
    """

    three_levels: dict[Pair, Calibration]
    all_levels: dict[Pair, Calibration]
    factors: Factors
    unseen_llm: dict[str, Factors]
    unseen_gpu: dict[str, Factors]


def facts_of(pair: Pair) -> tuple[Model, Gpu]:
    """Return a pair's model and GPU profile from the catalogue."""
    name, gpu, count = pair
    return catalog.models([name])[name], catalog.gpus([gpu])[gpu].model_copy(update={"count": count})


def by_pair(recordings: Iterable[Recording]) -> dict[Pair, list[Recording]]:
    """Return the levels of each pair, pairs and levels in order."""
    pairs: dict[Pair, list[Recording]] = {}
    for recording in sorted(recordings, key=lambda r: (r.pair, r.users)):
        pairs.setdefault(recording.pair, []).append(recording)
    return pairs


def judge(
    pairs: dict[Pair, list[Recording]], choose: Callable[[Pair], Calibration], run: Map
) -> list[Judged]:
    """Return every level beside its simulation under the pair's chosen calibration."""
    chosen = [choose(pair) for pair in pairs]
    results = run(_replay_all, chosen, pairs.values())
    return [
        Judged(recording, simulated)
        for levels, summaries in zip(pairs.values(), results, strict=True)
        for recording, simulated in zip(levels, summaries, strict=True)
    ]


def judge_calibrated(
    pairs: dict[Pair, list[Recording]], calibrations: dict[Pair, Calibration], run: Map
) -> list[Judged]:
    """Judge every pair under its own calibration, found by the names of its facts."""

    def choose(pair: Pair) -> Calibration:
        model, gpu = facts_of(pair)
        return calibrations[model.name, gpu.name, gpu.count]

    return judge(pairs, choose, run)


def judge_unseen(
    pairs: dict[Pair, list[Recording]], folds: dict[str, Factors], key: int, run: Map
) -> list[Judged]:
    """Judge every pair under the factors found without it: `key` 0 leaves its LLM out, 1 its GPU type.

    Of an LLM left out it is not known either which of its answers begin with a token without text.
    """

    def choose(pair: Pair) -> Calibration:
        return predict(folds[str(pair[key])], *facts_of(pair))

    return judge(
        {pair: [_unheard(r) for r in levels] for pair, levels in pairs.items()} if key == 0 else pairs,
        choose,
        run,
    )


def _unheard(recording: Recording) -> Recording:
    return replace(recording, silent_first=np.zeros(len(recording.silent_first), dtype=bool))


def refit(pairs: dict[Pair, list[Recording]], run: Map, say: Callable[[str], None]) -> Tables:
    """Fit everything anew, each part only on what it may see."""
    say(f"fitting {len(pairs)} pairs on users {', '.join(map(str, FITTED_LEVELS))}")
    few = [[level for level in levels if level.users in FITTED_LEVELS] for levels in pairs.values()]
    first: list[Fit] = list(run(_fit, few, [None] * len(few)))
    say("fitting them on all levels")
    full: list[Fit] = list(run(_fit, pairs.values(), [fit.calibration for fit in first]))
    known = [(*facts_of(pair), pair, fit) for pair, fit in zip(pairs, full, strict=True)]
    say("fitting the physics, with each LLM and each GPU type left out")
    folds = [(key, name) for key in (0, 1) for name in sorted({str(pair[key]) for pair in pairs})]
    subsets = [[(m, g, fit) for m, g, pair, fit in known if pair[key] != name] for key, name in folds]
    subsets.append([(model, gpu, fit) for model, gpu, _, fit in known])
    *parts, factors = run(fit_factors, subsets)
    named = dict(zip(folds, parts, strict=True))
    return Tables(
        three_levels={fit.calibration.pair: fit.calibration for fit in first},
        all_levels={fit.calibration.pair: fit.calibration for fit in full},
        factors=factors,
        unseen_llm={name: found for (key, name), found in named.items() if key == 0},
        unseen_gpu={name: found for (key, name), found in named.items() if key == 1},
    )


def calibrated_errors(judged: list[Judged]) -> dict[str, float]:
    """Return the median error of each figure over the levels that no calibration saw."""
    unseen = [item for item in judged if item.recording.users not in FITTED_LEVELS]
    return _errors(unseen, CALIBRATED, np.median)


def unseen_errors(judged: list[Judged]) -> dict[str, float]:
    """Return the mean error of each figure over all levels."""
    return _errors(judged, UNSEEN, np.mean)


def healthy(judged: list[Judged]) -> list[Judged]:
    """Return the levels that lost at most FAILURES_ALLOWED of their requests."""
    return [item for item in judged if item.recording.failure_rate <= FAILURES_ALLOWED]


def _errors(judged: list[Judged], names: tuple[str, ...], average: Callable[..., Any]) -> dict[str, float]:
    if not judged:
        return {}
    return {name: round(float(average([item.error(name) for item in judged])), 4) for name in names}


def _replay_all(calibration: Calibration, levels: list[Recording]) -> list[Summary]:
    model, gpu = facts_of(levels[0].pair)
    service = calibration.service(model, gpu)
    return [replay(service, level) for level in levels]


def _fit(levels: list[Recording], start: Calibration | None) -> Fit:
    model, gpu = facts_of(levels[0].pair)
    return fit_pair(levels, model, gpu, start, max_iterations=14 if start is None else 4)
