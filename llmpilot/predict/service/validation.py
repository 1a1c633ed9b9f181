"""Predicts the rows of a table of measurements, each without what is judged, and says how far off that is.

The same parts as a simulated service has: factors fitted to the shipped rows, what rows near by say on top of
them, the engine's scheduler, and the client that the row's source used.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from llmpilot.config import Model
from llmpilot.dataset.measurements import BATCH, Measurements
from llmpilot.dataset.shipped import shipped_measurements
from llmpilot.predict.service.batches import Batches, at_once, fit_batches, tabulated_batches
from llmpilot.predict.service.first_token import fit_all
from llmpilot.predict.service.fitting import Posterior, Table, fit, tabulated
from llmpilot.predict.service.levels import Level, described
from llmpilot.predict.service.nearby import Nearby, nearby, places
from llmpilot.predict.service.simulated import simulated
from llmpilot.processes import Map
from llmpilot.simulator.first_token import FirstToken, Key, overhead_of
from llmpilot.simulator.service_scales import NARROWER
from llmpilot.simulator.service_settings import is_of_2024
from llmpilot.simulator.step_model import Numbers, StepModel
from llmpilot.simulator.step_times import OperatorStepTimes

LeftOut = Literal["model", "gpu", "engine_version", "configuration", "level", "other_levels"]
"""What a row's prediction knows nothing of: its LLM everywhere; its GPU type; its engine's version; its
service (LLM, engine, GPUs, sharding, precision) and lengths; its level of load; or its LLM but for one level
of its curve, the one nearest to KNOWN_USERS."""
KNOWN_USERS = 16.0
FOLDS = 10
"""Of configurations and of levels, which are too many to be left out one by one."""
METRICS = ("tpot", "ttft", "e2e", "throughput")
PREFERRED = ("mean", "p50", "unspec", "p90", "p95", "p99")
"""Which statistic of a latency is judged, where a row has several."""
STATISTICS = ("mean", "p50", "p90", "p95", "p99")
Z_80 = 1.2816
"""Half of the 80% interval, in standard deviations."""
FIRST_TOKEN_ROWS = 60
"""Rows of each client and engine that the overheads of first tokens are fitted to."""
IN_PROCESS = ("offline", "in-process", "trtllm-bench")
"""Clients that call the engine in their own process, or time it there."""
FIRST_TOKEN_SPREAD = 0.35
"""Of TTFT (log units) beside TPOT's, where no row of the client and engine says better."""
Rows = NDArray[np.int64]
Pair = tuple[str, str]
"""Client and engine."""
Note = Callable[[str], None]


@dataclass(frozen=True)
class Training:
    """The shipped rows that predictions rest on, with their measured TPOT [n] ms."""

    measurements: Measurements
    levels: list[Level]
    table: Table
    tpot_ms: Numbers
    ttft_ms: Numbers
    first_tokens: dict[Pair, "SimulatedFirstTokens"] = field(default_factory=dict)
    """Of the pairs of client and engine that were asked for so far: they take seconds, and stay the same."""


@dataclass(frozen=True)
class SimulatedFirstTokens:
    """Some rows of a `Training` [n], simulated: mean TTFT before what a client sees besides, and TPOT."""

    rows: Rows
    ttft_ms: Numbers
    tpot_ms: Numbers


@dataclass(frozen=True)
class BatchTraining:
    """The shipped offline batches of 2024's engines, with their measured times [n] ms."""

    measurements: Measurements
    batches: Batches
    e2e_ms: Numbers


@dataclass(frozen=True)
class Prediction:
    """What is predicted of a table's rows. `table` has the rows as given and the predicted columns."""

    table: pd.DataFrame
    judged: pd.DataFrame
    """One row for each metric of each row that states it: row, metric, predicted, low, high, measured."""


def training(models: Mapping[str, Model]) -> Training:
    """Return the shipped rows of today's engines in a closed loop, without those in doubt.

    The last answer is kept: whoever judges a table several ways asks for the same rows again.
    """
    known = set(shipped_measurements().table["model"])
    return _training(tuple((hf_id, models[hf_id]) for hf_id in sorted(models) if hf_id in known))


@lru_cache(maxsize=1)
def _training(models: tuple[tuple[str, Model], ...]) -> Training:
    return training_of(shipped_measurements(), dict(models))


def training_of(measurements: Measurements, models: Mapping[str, Model]) -> Training:
    """Return the rows that are of today's engines in a closed loop and state a TPOT, but those in doubt."""
    chosen = measurements.select(measurements.closed_loop_today() & ~measurements.in_doubt())
    tpot = chosen.figure("tpot_ms", PREFERRED).to_numpy()
    levels = [one for one in described(chosen, models).levels if np.isfinite(tpot[one.row])]
    rows = [one.row for one in levels]
    ttft = chosen.figure("ttft_ms", PREFERRED).to_numpy()
    return Training(chosen, levels, tabulated(levels), tpot[rows], ttft[rows])


def batch_training(models: Mapping[str, Model]) -> BatchTraining:
    """Return the shipped synchronous batches of 2024's engines that fit into the memory.

    Rows that their source flags are left out, and those in doubt.
    """
    return batch_training_of(shipped_measurements(), models)


def batch_training_of(measurements: Measurements, models: Mapping[str, Model]) -> BatchTraining:
    """Return the rows that are such batches."""
    table = measurements.table
    sound = table["flag"].isna() & table["e2e_ms_mean"].notna() & ~measurements.in_doubt()
    chosen = measurements.select(sound & (table["load_kind"] == BATCH) & table["concurrency"].notna())
    levels = [one for one in described(chosen, models).levels if at_once(one) and of_2024(one)]
    measured = chosen.table["e2e_ms_mean"].to_numpy()
    return BatchTraining(chosen, tabulated_batches(levels), measured[[one.row for one in levels]])


def of_2024(level: Level) -> bool:
    """Whether a level is of an engine of 2024 or before."""
    settings = level.service.settings
    return is_of_2024(settings.engine, settings.version)


def predict(
    measurements: Measurements,
    models: Mapping[str, Model],
    left_out: LeftOut | None,
    run_on: Map,
    note: Note,
    *,
    learned_from: Measurements | None = None,
) -> Prediction:
    """Return the rows predicted; `models` are LLMs that the catalogue lacks, by Hugging Face id.

    They are predicted from the rows of `learned_from`; None: the shipped ones.
    """
    here = described(measurements, models)
    note(f"{len(here.levels)} of {len(measurements)} rows can be simulated")
    levels = here.levels
    if not levels:
        return _assembled(measurements, here.skipped, [], {})
    known = training(models) if learned_from is None else training_of(learned_from, models)
    table = tabulated(levels)
    folds = np.array([fold_of(level, left_out) for level in levels])
    known_folds = np.array([fold_of(level, left_out) for level in known.levels])
    old = None
    if any(of_2024(level) for level in levels):
        old = batch_training(models) if learned_from is None else batch_training_of(learned_from, models)
    old_folds = np.array([fold_of(level, left_out) for level in old.batches.levels] if old else [])
    scales, variances = np.ones(len(levels)), np.zeros(len(levels))
    posteriors: dict[str, Posterior] = {}
    for fold in dict.fromkeys(folds.tolist()):
        judged = np.flatnonzero(folds == fold)
        kept = np.arange(len(known.levels)) if left_out is None else np.flatnonzero(known_folds != fold)
        posterior = fit(known.table, known.tpot_ms, kept)
        chosen = [levels[row] for row in judged.tolist()]
        if old and any(of_2024(level) for level in chosen):
            beside = np.flatnonzero((old_folds != fold) | (left_out is None))
            posterior = fit_batches(old.batches, old.e2e_ms, beside, posterior)
        posteriors[fold] = posterior
        if left_out == "other_levels":
            mean, variance = _by_one_level(known, posterior, chosen)
        else:
            # Families say nothing of each other.
            related = kept[np.isin(known.table.families[kept], [level.family for level in chosen])]
            mean, variance = _near(known, posterior, related).mean_and_variance(places(chosen))
        scales[judged] = np.exp(mean)
        variances[judged] = variance + factor_variance(table, posterior, judged)
    overheads, spreads = _first_tokens(known, run_on, known_folds, folds.tolist(), levels)
    tasks = _tasks(levels, folds, posteriors, scales)
    note(f"simulating {len(levels)} levels in {len(tasks)} services")
    found: dict[int, dict[str, float]] = {}
    for done, part in enumerate(run_on(_simulate, [task[0] for task in tasks], [task[1] for task in tasks])):
        for index, figures in part:
            found[index] = figures
        if (done + 1) % 25 == 0:
            note(f"  {done + 1} of {len(tasks)} services")
    simulations = [
        Simulation(level, found[at], spread, _overhead(level, overheads[fold]))
        for at, (level, spread, fold) in enumerate(
            zip(levels, (NARROWER * np.sqrt(variances)).tolist(), folds.tolist(), strict=True)
        )
    ]
    return _assembled(measurements, here.skipped, simulations, spreads)


# --- what a prediction rests on --------------------------------------------------------------------------


def fold_of(level: Level, left_out: LeftOut | None) -> str:
    """Return which rows are left out together with a level's, by a name that they share."""
    service = level.service
    settings = service.settings
    if left_out in ("model", "other_levels"):
        return level.family
    if left_out == "gpu":
        return service.gpu.name
    if left_out == "engine_version":
        return f"{settings.engine} {settings.version}"
    if left_out is None:
        return ""
    shape = (settings.tensor_parallel, settings.data_parallel, settings.expert_parallel)
    formats = service.model.formats.model_dump_json()
    one = f"{level.family} {settings.engine} {service.gpu.name} {shape} {formats}"
    if left_out == "level":
        one += f" {level.input_tokens:g} {level.output_tokens:g} {level.users}"
    # Not Python's own hash, which differs from process to process.
    return str(sum((at + 1) * ord(letter) for at, letter in enumerate(one)) % FOLDS)


def _near(known: Training, posterior: Posterior, kept: Rows) -> Nearby:
    """Return what the errors of the rows that are kept say of others."""
    errors = np.log(known.tpot_ms[kept] / known.table.tpot_ms(posterior.logs, kept))
    return nearby(places([known.levels[row] for row in kept.tolist()]), errors)


def _by_one_level(known: Training, posterior: Posterior, asked: Sequence[Level]) -> tuple[Numbers, Numbers]:
    """Return mean and variance of each level's error [n], where one other level of its curve is known."""
    curves: dict[Any, list[int]] = {}
    for row, level in enumerate(known.levels):
        curves.setdefault(_curve(level), []).append(row)
    means, variances = np.zeros(len(asked)), np.zeros(len(asked))
    for at, level in enumerate(asked):
        curve = [row for row in curves.get(_curve(level), []) if known.levels[row].users != level.users]
        nearest = sorted(curve, key=lambda row: abs(np.log2((known.levels[row].users or 1.0) / KNOWN_USERS)))
        about = _near(known, posterior, np.array(nearest[:1], dtype=np.int64))
        mean, variance = about.mean_and_variance(places([level]))
        means[at], variances[at] = mean[0], variance[0]
    return means, variances


def _curve(level: Level) -> Any:
    settings = level.service.settings
    return (level.family, level.service.gpu.name, settings, level.input_tokens, level.output_tokens)


def factor_variance(table: Table, posterior: Posterior, rows: Rows) -> Numbers:
    """Return the variance that the factors' leaves in the rows' predictions [n] (log units)."""
    at = np.log(table.tpot_ms(posterior.logs, rows))
    step = 1e-4
    slopes = np.column_stack(
        [
            (np.log(table.tpot_ms(posterior.logs + move, rows)) - at) / step
            for move in step * np.eye(len(posterior.logs))
        ]
    )
    return np.asarray(((slopes @ posterior.covariance) * slopes).sum(1))


def _first_tokens(
    known: Training, run_on: Map, folds: NDArray[Any], asked: Sequence[str], levels: Sequence[Level]
) -> tuple[dict[str, dict[Key, FirstToken]], dict[Key, float]]:
    """Return the overheads of first tokens by fold, client and engine, and how far rows scatter about them.

    Of the clients and engines of `levels` only.
    """
    pairs = list(dict.fromkeys(client_key(level)[:2] for level in levels))
    parts = simulated_first_tokens(known, pairs, run_on)
    rows = np.concatenate([part.rows for part in parts])
    ttft = np.concatenate([part.ttft_ms for part in parts])
    tpot = np.concatenate([part.tpot_ms for part in parts])
    stated_ms = known.ttft_ms[rows]
    chosen = [client_key(known.levels[row]) for row in rows.tolist()]
    fitted: dict[str, dict[Key, FirstToken]] = {}
    spreads: dict[Key, float] = {}
    names = list(dict.fromkeys([*asked, *folds.tolist()]))
    misses: dict[Key, list[float]] = {}
    for fold in names:
        left = folds[rows] == fold if fold else np.zeros(len(rows), dtype=bool)
        use = ~left
        some = fit_all(
            [key for key, ok in zip(chosen, use, strict=True) if ok], ttft[use], tpot[use], stated_ms[use]
        )
        fitted[fold] = some
        for at in np.flatnonzero(left if fold else use).tolist():
            one = overhead_of(chosen[at], some)
            misses.setdefault(chosen[at], []).append(
                abs(float(np.log(stated_ms[at] / one.ttft_ms(ttft[at], tpot[at]))))
            )
    for key, errors_of in misses.items():
        spreads[key] = max(0.05, float(np.percentile(errors_of, 80)) / Z_80)
    return fitted, spreads


def simulated_first_tokens(known: Training, pairs: Sequence[Pair], run_on: Map) -> list[SimulatedFirstTokens]:
    """Return rows of each pair of client and engine simulated, with factors fitted to all rows."""
    lacking = [pair for pair in pairs if pair not in known.first_tokens]
    picked = _picked(known, lacking)
    rows = np.array([row for some in picked.values() for row in some], dtype=np.int64)
    ttft, tpot = np.empty(len(rows)), np.empty(len(rows))
    if len(rows):
        posterior = fit(known.table, known.tpot_ms, np.arange(len(known.levels)))
        errors = known.tpot_ms[rows] / known.table.tpot_ms(posterior.logs, rows)
        levels = [known.levels[row] for row in rows.tolist()]
        tasks = _tasks(levels, np.full(len(rows), ""), {"": posterior}, errors)
        for part in run_on(_simulate, [task[0] for task in tasks], [task[1] for task in tasks]):
            for at, figures in part:
                ttft[at], tpot[at] = figures["ttft_mean"], figures["tpot_mean"]
    begin = 0
    for pair, some in picked.items():
        end = begin + len(some)
        known.first_tokens[pair] = SimulatedFirstTokens(rows[begin:end], ttft[begin:end], tpot[begin:end])
        begin = end
    return [known.first_tokens[pair] for pair in pairs]


def _picked(known: Training, pairs: Sequence[Pair]) -> dict[Pair, list[int]]:
    """Return up to FIRST_TOKEN_ROWS rows of each GPU architecture for each pair, the same whoever asks."""
    keys = [client_key(level) for level in known.levels]
    rng = np.random.default_rng(0)
    picked: dict[Pair, list[int]] = {pair: [] for pair in pairs}
    for key in dict.fromkeys(keys):
        stated = [row for row, one in enumerate(keys) if one == key and np.isfinite(known.ttft_ms[row])]
        some = rng.permutation(stated)[:FIRST_TOKEN_ROWS].tolist()
        if key[:2] in picked:
            picked[key[:2]] += some
    return picked


def _overhead(level: Level, fitted: Mapping[Key, FirstToken]) -> FirstToken:
    """Return the overheads of a level's first tokens; of one in the engine's own process, none."""
    if level.client in IN_PROCESS:
        return FirstToken(0.0, 1.0, 0.0)
    return overhead_of(client_key(level), fitted)


def client_key(level: Level) -> Key:
    """Return what the overheads of first tokens are told apart by."""
    return level.client, level.service.settings.engine, level.service.gpu.architecture


# --- simulating, in other processes ----------------------------------------------------------------------

Task = tuple[StepModel, dict[str, float]]
Work = list[tuple[int, Level, float]]


def _tasks(
    levels: Sequence[Level], folds: NDArray[Any], posteriors: Mapping[str, Posterior], scales: Numbers
) -> list[tuple[Task, Work]]:
    """Return the levels by service and fold: each has one table of step times."""
    grouped: dict[tuple[int, str], Work] = {}
    for at, level in enumerate(levels):
        key = (id(level.service), str(folds[at]))
        grouped.setdefault(key, []).append((at, level, float(scales[at])))
    return [((work[0][1].service, posteriors[fold].factors()), work) for (_, fold), work in grouped.items()]


def _simulate(task: Task, work: Work) -> list[tuple[int, dict[str, float]]]:
    """Return the figures of a service's levels, by the place of each among all."""
    service, factors = task
    times = OperatorStepTimes(service, factors)
    found = []
    for at, level, scale in work:
        run = simulated(level, times.scaled(scale), gaps=False)
        figures = {
            f"{latency}_{statistic}": run.figure(latency, statistic)
            for latency in ("ttft", "tpot", "e2e")
            for statistic in STATISTICS
        }
        figures["throughput_out_tok_s"] = run.throughput_out_tok_s
        found.append((at, figures))
    return found


# --- putting together ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Simulation:
    """A simulated level: figures, spread of its step times (log units), overhead of its first tokens."""

    level: Level
    figures: Mapping[str, float]
    spread: float
    overhead: FirstToken


def _assembled(
    measurements: Measurements,
    skipped: Sequence[str | None],
    simulations: Sequence[Simulation],
    spreads: Mapping[Key, float],
) -> Prediction:
    """Return the predictions beside the rows, and each figure that a row states beside its prediction."""
    table = measurements.table
    columns = ("ttft_ms", "tpot_ms", "e2e_ms", "throughput_out_tok_s")
    predicted = {
        f"predicted_{name}{end}": np.full(len(table), np.nan)
        for name in columns
        for end in ("", "_low", "_high")
    }
    judged = []
    for one in simulations:
        level, figures, spread = one.level, one.figures, one.spread
        row = table.iloc[level.row]
        first_spread = float(np.hypot(spread, spreads.get(client_key(level), FIRST_TOKEN_SPREAD)))
        tpot = {name: figures[f"tpot_{name}"] for name in STATISTICS}
        step_ms = tpot["mean"] if np.isfinite(tpot["mean"]) else 0.0  # nothing comes behind a single token
        ttft = {name: float(one.overhead.ttft_ms(figures[f"ttft_{name}"], step_ms)) for name in STATISTICS}
        later = ttft["mean"] - figures["ttft_mean"]
        e2e = {name: figures[f"e2e_{name}"] + later for name in STATISTICS}
        share = min(1.0, ttft["mean"] / e2e["mean"]) if e2e["mean"] > 0 else 0.0
        both = float(np.hypot(share * first_spread, (1.0 - share) * spread))
        rate = 1.0 if level.rate_per_s or not e2e["mean"] > 0 else figures["e2e_mean"] / e2e["mean"]
        out = figures["throughput_out_tok_s"] * rate
        values = {
            "tpot": (tpot, spread),
            "ttft": (ttft, first_spread),
            "e2e": (e2e, both),
            "throughput": (dict.fromkeys(STATISTICS, out), both),
        }
        for metric, (by_statistic, wide) in values.items():
            statistic, measured = _stated(row, metric)
            value = by_statistic["mean" if statistic in (None, "unspec") else statistic]
            low, high = value * np.exp(-Z_80 * wide), value * np.exp(Z_80 * wide)
            name = "throughput_out_tok_s" if metric == "throughput" else f"{metric}_ms"
            for end, figure in (("", value), ("_low", low), ("_high", high)):
                predicted[f"predicted_{name}{end}"][level.row] = figure
            if measured is not None and np.isfinite(value):
                judged.append((level.row, metric, value, low, high, measured))
    given = table.assign(**predicted).assign(skipped=pd.Series(list(skipped), dtype=object))
    names = ["row", "metric", "predicted", "low", "high", "measured"]
    return Prediction(given, pd.DataFrame(judged, columns=names))


def _stated(row: pd.Series, metric: str) -> tuple[str | None, float | None]:
    """Return which statistic of a metric a row states, and its value; nothing where it states none.

    A row without E2E that states TTFT and TPOT states it with them.
    """
    if metric == "throughput":
        value = row["throughput_out_tok_s"]
        return (None, float(value)) if pd.notna(value) and value > 0 else (None, None)
    for statistic in PREFERRED:
        value = row[f"{metric}_ms_{statistic}"]
        if pd.notna(value) and value > 0:
            return statistic, float(value)
    if metric == "e2e" and pd.notna(row["output_tokens"]):
        for statistic in ("mean", "unspec"):
            ttft, tpot = row[f"ttft_ms_{statistic}"], row[f"tpot_ms_{statistic}"]
            if pd.notna(ttft) and pd.notna(tpot):
                middle = (1.0 + (row["length_min_share"] if pd.notna(row["length_min_share"]) else 1.0)) / 2
                return "mean", float(ttft + tpot * max(0.0, middle * row["output_tokens"] - 1.0))
    return None, None
