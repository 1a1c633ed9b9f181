"""The fitted pilot that ships: it is what the configuration would fit, and is taken for nothing else."""

import zipfile
from pathlib import Path

import numpy as np
import pytest
import yaml

from llmpilot import catalog
from llmpilot.config import build
from llmpilot.dataset import published
from llmpilot.predict.pilot import shipped
from llmpilot.predict.pilot.pilot import Pilot
from llmpilot.recommendation import learn as learning
from llmpilot.recommendation.learn import learn

SEED = 42


@pytest.fixture(scope="module")
def configured() -> Pilot:
    text = (catalog.conf_dir() / "predictor" / "pilot.yaml").read_text(encoding="utf-8")
    pilot = build(yaml.safe_load(text), "predictor")
    assert isinstance(pilot, Pilot)
    return pilot


def test_it_is_up_to_date(configured: Pilot) -> None:
    """If not: python experiments/10_predictor/ship.py"""
    fitted = configured.shipped(published(), SEED)
    assert fitted is not None
    assert len(fitted.out_of_fold) == len(published())
    assert shipped.FITTED.stat().st_size < 2_000_000


def test_it_is_taken_for_no_other_data_settings_or_seed(configured: Pilot) -> None:
    data = published()
    assert configured.shipped(data.without("mpt_7b"), SEED) is None
    assert configured.shipped(data, SEED + 1) is None
    assert configured.model_copy(update={"draws": 100}).shipped(data, SEED) is None


def test_a_shipped_pilot_answers_as_it_did(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = published()
    few = data.select(data.table["model"].isin(["starcoder", "llama_7b", "flan_t5_xl"]))
    light = Pilot(name="pilot", views=[["simulator"]], trees=5, fold_trees=3, draws=50)
    fitted = light.fit(few, 3)
    monkeypatch.setattr(shipped, "FITTED", tmp_path / "own" / "fitted.zip")
    assert light.shipped(few, 3) is None
    origin = shipped.made_of(light.model_dump(mode="json"), few, 3)
    shipped.ship(fitted, origin, shipped.FITTED)
    with zipfile.ZipFile(shipped.FITTED) as archive:
        assert {Path(name).suffix for name in archive.namelist()} == {".json", ".csv", ".ubj"}
    again = light.shipped(few, 3)
    assert again is not None
    model, profiles = catalog.models(["mpt_7b"])["mpt_7b"], catalog.gpu_profiles(["h100", "t4"])
    one, other = (known.predict(model, profiles, (1, 8, 64)) for known in (fitted, again))
    assert other.itl_ms == pytest.approx(one.itl_ms, rel=1e-9)
    assert one.draws is not None
    assert other.draws is not None
    assert np.allclose(other.draws.nttft_ms, one.draws.nttft_ms, rtol=1e-9)


def test_a_first_question_of_an_unmeasured_llm_trains_nothing(
    configured: Pilot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fit(self: Pilot, *_: object) -> None:
        raise AssertionError("trained")

    monkeypatch.setattr(Pilot, "fit", fit)
    model = catalog.models(["qwen3_8b"])["qwen3_8b"]
    learned = learn(published(), model, configured, workload="paper", seed=SEED, folder=tmp_path)
    assert learned.own is None
    assert not list(tmp_path.iterdir())
    assert not learning.FOLDER.is_relative_to(Path.cwd())
