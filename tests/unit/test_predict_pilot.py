"""The pilot predictor: its parts against what they stand for, and the whole against leaks."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.ensemble import ExtraTreesRegressor

from llmpilot import catalog
from llmpilot.config import Gpu
from llmpilot.dataset import Dataset, published
from llmpilot.errors import ConfigError
from llmpilot.predict.decision import Need
from llmpilot.predict.evaluation import evaluate, on_profiles, rows_of
from llmpilot.predict.pilot.cells import cells_of, dataset_rows, grid_rows, known_of
from llmpilot.predict.pilot.fitted import FACTS_FILE, load_pilot
from llmpilot.predict.pilot.lessons import MOST_SEEN, carried, lessons_of
from llmpilot.predict.pilot.physics import fit_physics, weights_of
from llmpilot.predict.pilot.pilot import Pilot
from llmpilot.predict.pilot.residuals import SPREAD, Cluster, Residuals, fit_residuals, fit_widths
from llmpilot.predict.pilot.simulated import _network, fit_simulator, inputs_of, reference_of
from llmpilot.predict.pilot.trees import to_booster
from llmpilot.predict.prediction import FAILURES_ALLOWED
from llmpilot.predict.scores import truth_of
from llmpilot.simulator import Outcome, physics, simulate_closed
from llmpilot.workload import load_workload

USERS = (1, 2, 4, 8, 16, 32, 64, 128)
SMALL = Pilot(
    name="pilot", views=[["closed_form"], ["closed_form", "simulator"]], trees=12, fold_trees=6, draws=200
)


@pytest.fixture(scope="module")
def data() -> Dataset:
    return published()


@pytest.fixture(scope="module")
def few(data: Dataset) -> Dataset:
    names = ("starcoder", "llama_7b", "flan_t5_xl", "mpt_7b")
    return data.select(data.table["model"].isin(names))


def test_xgboost_repeats_the_forest() -> None:
    rng = np.random.default_rng(0)
    features = rng.random((300, 5)).astype(np.float32)
    target = features[:, 0] * 3 + np.sin(9 * features[:, 1]) + 5
    forest = ExtraTreesRegressor(20, min_samples_leaf=2, random_state=1).fit(features, target)
    new = np.concatenate([features, rng.random((300, 5)).astype(np.float32)])
    assert to_booster(forest).inplace_predict(new) == pytest.approx(forest.predict(new), abs=1e-5)


def test_closed_form_finds_what_made_the_latencies(data: Dataset) -> None:
    rows, known = dataset_rows(data), known_of(data)
    cells, weights = cells_of(rows, known), weights_of(data.table["model"].to_numpy(dtype=object))
    measured = np.log(data.table[["nttft_ms", "itl_ms"]].to_numpy(float))
    found = fit_physics(cells, measured, weights, known)
    made = found.predict(cells)
    again = fit_physics(cells, made, weights, known).predict(cells)
    assert np.abs(again - made).mean() < 0.02
    assert np.abs(made - measured).mean(axis=0) == pytest.approx([0.2, 0.1], abs=0.05)


def test_network_answers_like_the_simulator() -> None:
    """On services of the catalogue as they are: the network has never seen these."""
    workload = load_workload({"name": "paper", "model": "shipped:paper"})
    factors, errors = physics.shipped_factors(), []
    for name, option, count in (("starcoder", "h100", 1), ("flan_t5_xl", "t4", 2), ("qwen2_5_7b", "l40s", 1)):
        model = catalog.models([name])[name]
        gpu = catalog.gpus([option])[option].model_copy(update={"count": count})
        service = physics.predict(factors, model, gpu).service(model, gpu)
        for users in (1, 16, 128):
            done = simulate_closed(service, workload.stream(0), users, 120e3, 30e3, keep_load=False)
            ok = done.outcome == Outcome.OK
            gaps_ms = done.gap_us[np.repeat(ok, np.diff(done.gap_offsets))] / 1e3
            ttft_ms = (done.first_token_us - done.sent_us)[ok] / 1e3 - service.request_overhead_ms
            truth = np.log([np.median(ttft_ms / done.requests.input_tokens[ok]), np.median(gaps_ms)])
            inputs = np.append(inputs_of([service]), np.log2(users))[None]
            errors.append((_network()(inputs) + reference_of(inputs))[0] - truth)
    assert np.abs(errors).mean(axis=0) == pytest.approx([0, 0], abs=0.1)


def test_simulator_physics_has_not_seen_an_llm_that_is_left_out(data: Dataset) -> None:
    seen, unseen = (fit_simulator(dataset_rows(d).pairs) for d in (data, data.without("mpt_7b")))
    assert seen.factors != unseen.factors
    assert fit_simulator([]).factors == physics.fit_factors([])


def covariance(variances: tuple[float, ...], a: Cluster, b: Cluster) -> np.ndarray:
    apart = (a.doublings[:, None] - b.doublings[None]) ** 2
    same = a.profile[:, None] == b.profile[None]
    llm = variances[0] + variances[1] * np.exp(-apart / 8)
    return llm + same * (variances[2] + variances[3] * np.exp(-apart / 2))


def test_measured_cells_pull_draws_as_the_dense_formula_says() -> None:
    variances = (0.04, 0.02, 0.02, 0.01, 0.003)
    rng = np.random.default_rng(3)
    loads = np.arange(4.0)
    grid = Cluster(np.repeat([0, 1, 2], 4), np.tile(loads, 3), np.zeros(12), np.zeros((12, 1)))
    # The second profile was measured, and one that is not asked for, at a load in between.
    residual, traits = np.array([0.3, 0.2, -0.1]), np.array([[0.0], [1.0], [-1.0]])
    known = Cluster(np.array([1, 1, 5]), np.array([0.0, 3.0, 1.5]), residual, traits)
    residuals = Residuals(variances, freedom=7.0, widening=(0.4,))
    drawn, mean = residuals.draw(3, loads, 40_000, rng, known)
    inner = covariance(variances, known, known) + variances[4] * np.eye(3)
    cross = covariance(variances, grid, known)
    expected = cross @ np.linalg.solve(inner, residual / np.exp(0.4 * traits[:, 0]))
    spread = covariance(variances, grid, grid) - cross @ np.linalg.solve(inner, cross.T) + 0.003 * np.eye(12)
    spread = SPREAD**2 * spread * 7 / (7 - 2)
    assert mean.ravel() == pytest.approx(expected, abs=1e-6)
    flat = drawn.reshape(len(drawn), -1)
    assert flat.mean(axis=0) == pytest.approx(expected, abs=0.01)
    assert np.cov(flat.T) == pytest.approx(spread, abs=0.004)


def test_variances_are_found_again() -> None:
    rng = np.random.default_rng(5)
    variances = (0.09, 0.01, 0.04, 0.01, 0.002)
    profile, doublings = np.repeat(np.arange(6), 8), np.tile(np.arange(8.0), 6)
    traits = np.column_stack([doublings / 4 - 1])
    empty = Cluster(profile, doublings, np.zeros(48), traits)
    wider = np.exp(0.5 * traits[:, 0])
    root = np.linalg.cholesky(covariance(variances, empty, empty) + variances[4] * np.eye(48))
    scales = np.sqrt(6 / rng.chisquare(6, 60))
    clusters = [replace(empty, residual=wider * scale * (root @ rng.standard_normal(48))) for scale in scales]
    fitted = fit_residuals(clusters)
    found = np.array(fitted.variances)
    assert fitted.freedom == pytest.approx(6, rel=0.5)
    assert fitted.widening == pytest.approx([0.5], abs=0.1)
    assert found[4] == pytest.approx(variances[4], rel=0.5)
    assert found[:2].sum() == pytest.approx(0.10, rel=0.5)
    assert found[2:4].sum() == pytest.approx(0.05, rel=0.5)
    by_traits, alike = fit_widths(clusters)
    assert by_traits == fitted
    assert by_traits.scale(traits)[7] > 2 * by_traits.scale(traits)[0]
    assert alike.scale(traits) == pytest.approx(np.ones(48))
    assert sum(alike.variances) > sum(found)  # what no trait explains


def test_keeps_everything_in_files_without_code(few: Dataset, tmp_path: Path) -> None:
    fitted = SMALL.fit(few, seed=1)
    fitted.save(tmp_path)
    assert {file.suffix for file in tmp_path.iterdir()} == {".json", ".csv", ".ubj"}
    model, profiles = (
        catalog.models(["llama_13b"])["llama_13b"],
        catalog.gpu_profiles(["h100", "l4", "mi300x"]),
    )
    said, again = (one.predict(model, profiles, USERS) for one in (fitted, SMALL.load(tmp_path)))
    assert again.nttft_ms == pytest.approx(said.nttft_ms, rel=1e-9)
    assert said.draws is not None
    assert again.draws is not None
    assert again.draws.itl_ms == pytest.approx(said.draws.itl_ms, rel=1e-9)
    assert len(fitted.out_of_fold) == len(few)
    (tmp_path / FACTS_FILE).write_text("{}")
    with pytest.raises(ConfigError, match="no fitted pilot"):
        load_pilot(tmp_path)


def test_measured_cells_are_taken_as_they_are_and_narrow_the_others(few: Dataset) -> None:
    fitted = SMALL.fit(few.without("llama_7b"), seed=1)
    own = few.only("llama_7b")
    model, profiles = own.models["llama_7b"], [gpu for _, gpu in dataset_rows(own).pairs]
    blind = fitted.predict(model, profiles, USERS)
    shown = rows_of(own.table, ["1xH100"])
    told = fitted.predict(model, profiles, USERS, shown)
    at = [gpu.label for gpu in profiles].index("1 x H100")
    assert told.itl_ms[at] == pytest.approx(shown.sort_values("users")["itl_ms"].to_numpy())
    assert told.draws is not None
    assert blind.draws is not None
    assert np.ptp(told.draws.itl_ms[:, at], axis=0) == pytest.approx(np.zeros(8), abs=1e-9)
    others = [i for i in range(len(profiles)) if i != at]
    spreads = [np.log(one.draws.itl_ms[:, others]).std(axis=0).mean() for one in (told, blind)]
    assert spreads[0] < spreads[1]


def test_nothing_of_the_llm_left_out_is_seen(few: Dataset) -> None:
    """The whole chain, with the rows of one LLM made nonsense: its own predictions do not change."""
    needs, out = [Need(200, 100.0, 50.0)], "mpt_7b"
    nonsense = few.table.copy()
    rows = nonsense["model"] == out
    nonsense.loc[rows, ["nttft_ms", "itl_ms"]] = np.random.default_rng(0).uniform(
        1, 500, (int(rows.sum()), 2)
    )
    honest, confused = (
        next(fold for fold in evaluate(SMALL, data, needs, [3]) if fold.model == out)
        for data in (few, Dataset(nonsense, few.models, few.gpus))
    )
    assert honest.prediction.nttft_ms == pytest.approx(confused.prediction.nttft_ms, rel=1e-12)
    assert honest.choices == confused.choices


def test_nothing_but_the_measured_profile_of_the_llm_left_out_is_seen(few: Dataset) -> None:
    needs, out = [Need(200, 100.0, 50.0)], "mpt_7b"
    nonsense = few.table.copy()
    rows = (nonsense["model"] == out) & ~((nonsense["gpu"] == "H100") & (nonsense["count"] == 1))
    nonsense.loc[rows, ["nttft_ms", "itl_ms"]] = 77.0
    honest, confused = (
        next(fold for fold in evaluate(SMALL, data, needs, [3], measured=["1xH100"]) if fold.model == out)
        for data in (few, Dataset(nonsense, few.models, few.gpus))
    )
    assert honest.prediction.nttft_ms == pytest.approx(confused.prediction.nttft_ms, rel=1e-12)
    assert honest.choices == confused.choices


def test_learns_for_what_was_measured_of_the_llm(few: Dataset, tmp_path: Path) -> None:
    own, others = few.only("llama_7b"), few.without("llama_7b")
    model, profiles = own.models["llama_7b"], [gpu for _, gpu in dataset_rows(own).pairs]
    one = own.select(on_profiles(own.table, ["1xH100"]))
    knowing = SMALL.fit_knowing(others, one, seed=1)
    assert knowing.seen_on == (("H100", 1),)
    hidden = ~on_profiles(others.table, ["1xH100"])
    assert len(knowing.out_of_fold) == hidden.sum()
    slower = one.table.assign(itl_ms=one.table["itl_ms"] * 1.5)
    told, told_slower = (
        SMALL.fit_knowing(others, Dataset(table, one.models, one.gpus), seed=1)
        .predict(model, profiles, USERS, table)
        .itl_ms
        for table in (one.table, slower)
    )
    elsewhere = [at for at, gpu in enumerate(profiles) if gpu.label != "1 x H100"]
    assert np.median(told_slower[elsewhere] / told[elsewhere]) > 1.02
    knowing.save(tmp_path)
    again = SMALL.load(tmp_path).predict(model, profiles, USERS, one.table)
    assert again.itl_ms == pytest.approx(told, rel=1e-9)


def test_of_many_measured_profiles_some_are_learned_from_and_all_are_believed(few: Dataset) -> None:
    own, others = few.only("llama_7b"), few.without("llama_7b")
    model, profiles = own.models["llama_7b"], [gpu for _, gpu in dataset_rows(own).pairs]
    knowing = SMALL.fit_knowing(others, own, seed=1)
    assert len(knowing.seen_on) == MOST_SEEN
    told = knowing.predict(model, profiles, USERS, own.table)
    assert told.itl_ms == pytest.approx(truth_of(few, "llama_7b").itl_ms[_order(few, profiles)], rel=1e-9)


def test_a_measurement_where_no_other_llm_was_measured_moves_the_draws_alone(few: Dataset) -> None:
    own, others = few.only("llama_7b"), few.without("llama_7b")
    away = others.select(~on_profiles(others.table, ["1xH100"]))
    one = own.select(on_profiles(own.table, ["1xH100"]))
    knowing, plain = SMALL.fit_knowing(away, one, seed=1), SMALL.fit(away, seed=1)
    assert knowing.seen_on == ()
    model, profiles = own.models["llama_7b"], [gpu for _, gpu in dataset_rows(own).pairs]
    told, blind = (known.predict(model, profiles, USERS, one.table) for known in (knowing, plain))
    assert told.nttft_ms == pytest.approx(blind.nttft_ms, rel=1e-12)
    assert (told.nttft_ms != plain.predict(model, profiles, USERS).nttft_ms).mean() > 0.9


def _order(data: Dataset, profiles: list[Gpu]) -> list[int]:
    at = [gpu.label for gpu in truth_of(data, "llama_7b").profiles]
    return [at.index(gpu.label) for gpu in profiles]


def test_what_was_missed_is_carried_to_other_loads() -> None:
    missed = np.array([[0.2, 1.0], [0.4, 3.0], [0.9, 5.0]])
    carried_over = carried(missed, np.array([1.0, 1.0, 3.0]), np.array([0.0, 1.0, 2.0, 6.0]))
    assert carried_over == pytest.approx(np.array([[0.3, 2.0], [0.3, 2.0], [0.6, 3.5], [0.9, 5.0]]))
    assert not carried(missed[:0], np.array([]), np.array([1.0, 2.0])).any()


def test_same_seed_same_answer(few: Dataset) -> None:
    profiles = catalog.gpu_profiles(["a100"])
    model = catalog.models(["qwen3_8b"])["qwen3_8b"]
    first, second, other = (SMALL.fit(few, seed).predict(model, profiles, USERS) for seed in (1, 1, 2))
    assert (first.itl_ms == second.itl_ms).all()
    assert (first.itl_ms != other.itl_ms).any()


def test_needs_two_llms(few: Dataset) -> None:
    with pytest.raises(ConfigError, match="two or more"):
        SMALL.fit(few.only("mpt_7b"), seed=1)
    with pytest.raises(ConfigError, match="at least three"):
        list(evaluate(SMALL, few.select(few.table["model"].isin(["mpt_7b", "llama_7b"])), [], [1]))


def test_rows_cells_and_features_agree_in_order(data: Dataset) -> None:
    rows = dataset_rows(data)
    for at in (0, 100, 527):
        model, gpu = rows.pairs[rows.pair[at]]
        said = data.table.iloc[at]
        assert (model.name, gpu.name, gpu.count) == (data.models[said.model].name, said.gpu, said["count"])
        assert rows.users[at] == said.users
    grid = grid_rows(model, [gpu, gpu], (1, 2, 3))
    assert grid.users.tolist() == [1, 2, 3, 1, 2, 3]
    assert grid.pair.tolist() == [0, 0, 0, 1, 1, 1]


def test_failures_are_predicted_and_what_was_counted_is_believed(data: Dataset) -> None:
    """gpt-neox and mt0: one that fails under load, and one that fails everywhere, whatever the GPU."""
    names = ("starcoder", "llama_7b", "flan_t5_xl", "codegen2_16b", "gpt_neox_20b")
    others = data.select(data.table["model"].isin(names[:-1]))
    fitted = SMALL.fit(others, seed=1)
    truth = truth_of(data, "gpt_neox_20b")
    said = fitted.predict(truth.model, truth.profiles, truth.users).failing
    assert said is not None
    failed = truth.failure_rate > FAILURES_ALLOWED
    assert said[failed].mean() > 0.1 + said[~failed].mean()
    assert (np.diff(said, axis=1) >= 0).all()
    own = data.only("gpt_neox_20b").table
    told = fitted.predict(truth.model, truth.profiles, truth.users, own).failing
    assert told == pytest.approx(failed.astype(float))
    mt0 = data.only("mt0_xxl")
    elsewhere = catalog.gpu_profiles(["h200"])
    model = mt0.models["mt0_xxl"]
    assert (fitted.predict(model, elsewhere, USERS).failing != 1).any()
    assert (fitted.predict(model, elsewhere, USERS, mt0.table).failing == 1).all()
    loaded = mt0.table[mt0.table["users"] == 128]  # which may fail of the load: it says nothing of others
    assert (fitted.predict(model, elsewhere, USERS, loaded).failing != 1).any()


def test_what_an_llm_loses_at_its_best_is_no_failure_of_a_gpu(data: Dataset) -> None:
    lessons = lessons_of(data)
    mt0 = lessons.names == "mt0_xxl"  # loses 27% of its requests everywhere, give or take 2%
    assert np.isnan(lessons.failing[mt0]).all()
    assert np.isfinite(lessons.failing[~mt0]).mean() > 0.99  # two raw files are missing
    fitted = SMALL.fit(data.without("flan_t5_xxl"), seed=1)
    xxl = truth_of(data, "flan_t5_xxl")
    said = fitted.predict(xxl.model, xxl.profiles, xxl.users).failing
    assert said is not None
    assert said[:, 0].max() < 0.1  # measured: none fails with one user


def test_half_of_the_draws_are_wider_where_requests_wait_and_without_kin(data: Dataset) -> None:
    fitted = SMALL.fit(data, seed=1)
    model, profiles = catalog.models(["llama_13b"])["llama_13b"], catalog.gpu_profiles(["a100"])
    draws = fitted.predict(model, profiles, USERS).draws
    alone = replace(fitted, kin=(0, 0, 0)).predict(model, profiles, USERS).draws
    assert draws is not None
    assert alone is not None
    half = SMALL.draws // 2
    logs, logs_alone = (one.logs("nttft_ms") for one in (draws, alone))
    spread, spread_alone = (one[:half].std(axis=0) for one in (logs, logs_alone))
    assert spread[0, -1] > 1.3 * spread[0, 0]
    assert (spread_alone > 1.2 * spread).all()
    assert (logs_alone[half:] == logs[half:]).all()


def test_there_are_as_many_draws_as_asked_for_when_halves_are_not_whole(few: Dataset) -> None:
    fitted = replace(SMALL.fit(few, seed=1), draws=31)
    model, profiles = catalog.models(["llama_13b"])["llama_13b"], catalog.gpu_profiles(["a100"])
    draws = fitted.predict(model, profiles, USERS).draws
    assert draws is not None
    assert draws.logs("itl_ms").shape == (31, len(profiles), len(USERS))
    assert np.isfinite(draws.logs("itl_ms")).all()
    assert (draws.logs("itl_ms").std(axis=0) > 0.01).all()


def test_without_counted_failures_nothing_is_said_of_them(few: Dataset, tmp_path: Path) -> None:
    uncounted = Dataset(few.table.assign(failure_rate=np.nan), few.models, few.gpus)
    fitted = SMALL.fit(uncounted, seed=1)
    fitted.save(tmp_path)
    model, profiles = few.models["starcoder"], catalog.gpu_profiles(["h100"])
    assert [one.predict(model, profiles, USERS).failing for one in (fitted, SMALL.load(tmp_path))] == [
        None
    ] * 2
