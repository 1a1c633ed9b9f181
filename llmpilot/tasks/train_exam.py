"""What task `train` judges recommenders by: as task=evaluate on=today does, with the rule that is served and
each LLM left out; and its outcome as files."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from llmpilot import catalog, interrupts
from llmpilot.config import parse
from llmpilot.dataset import Measurements, MeasurementsError
from llmpilot.files import replacing, to_json, write_text
from llmpilot.predict.decision import Rule
from llmpilot.predict.service.levels import described
from llmpilot.predict.service.measured_curves import measured_curves
from llmpilot.predict.service.recommended import (
    Menu,
    Outcome,
    expected_of,
    forecasts,
    menus,
    recommended,
    score,
)
from llmpilot.predict.service.validation import Prediction, predict
from llmpilot.prices import PriceList
from llmpilot.processes import workers
from llmpilot.serving.bundle import Rows
from llmpilot.serving.contest import terms_of
from llmpilot.serving.figures import plot_by_model, plot_predictions
from llmpilot.tasks.evaluate_today import BOTH, TPOT, Settings, limits_of

SCORES_FILE = "scores.json"
SCORES = (TPOT, BOTH, "errors")
STEPS = 10
"""Times that it says how far the judging is."""
Tell = Callable[[str], None]


@dataclass(frozen=True)
class Verdicts:
    """What became of recommendations, by the kind of limits, and what was predicted of the rows."""

    outcomes: dict[str, list[Outcome]]
    prediction: Prediction

    @property
    def scores(self) -> dict[str, Any]:
        """The scores as fractions, under the names that task=evaluate on=today gives them."""
        llms = sorted({one.model for one in self.outcomes[BOTH]})
        judged = self.prediction.judged
        errors = {name: _median_error(judged[judged["metric"] == name]) for name in ("tpot", "ttft")}
        return {
            "rule": asdict(Rule.at(None)),
            **{kind: _scored(outcomes) for kind, outcomes in self.outcomes.items()},
            "per_model": [
                {"model": llm}
                | {
                    kind: _scored([one for one in outcomes if one.model == llm])
                    for kind, outcomes in self.outcomes.items()
                }
                for llm in llms
            ],
            "errors": errors,
        }


@dataclass(frozen=True)
class Exam:
    """By which rows, at which prices, recommenders are judged, in so many processes."""

    rows: Rows
    prices: PriceList
    workers: int

    @property
    def settings(self) -> Settings:
        """The limits and loads of task=evaluate on=today, without the rules that it compares with."""
        facts = catalog.option("task", "evaluate")["today"]["settings"]
        return parse(Settings, facts | {"risks": [], "margins": []}, "today.settings")

    @property
    def terms(self) -> str:
        """What a score depends on but what was learned from, as a hash."""
        return terms_of(
            self.rows.measurements, self.prices, asdict(Rule.at(None)), self.settings.model_dump(mode="json")
        )

    @cached_property
    def menus(self) -> list[Menu]:
        """What there is to choose from, of each LLM and pair of lengths.

        Raises:
            MeasurementsError: no row is of a service that can be simulated and has a price.
        """
        measurements = self._comparable
        levels = described(measurements, self.rows.models).levels
        prices = {option: self.prices.of(option) for option in self.prices.options}
        found = menus(measured_curves(measurements, levels), prices)
        if not found:
            raise MeasurementsError(
                "no row is a closed loop of a service that can be simulated and has a price: recommendations "
                "cannot be judged",
                given=f"{len(measurements)} rows, prices={self.prices.name}",
                cure="dataset=published, or rows with TPOT and TTFT of several GPU types",
            )
        return found

    def judged(self, learned: Rows, tell: Tell) -> Verdicts:
        """Return what becomes of the recommendations of what was learned from some rows, each LLM left out.

        Raises:
            MeasurementsError: as `menus`.
        """
        found, measurements = self.menus, self._comparable
        models = {**learned.models, **self.rows.models}
        with workers(self.workers) as run_on:
            predicted = predict(
                measurements, models, "model", run_on, tell, learned_from=learned.measurements
            )
        expected = expected_of(predicted)
        settings = self.settings
        outcomes: dict[str, list[Outcome]] = {kind: [] for kind in (TPOT, BOTH)}
        for done, menu in enumerate(found):
            interrupts.check()
            if done % max(1, len(found) // STEPS) == 0:
                tell(f"judging: {done} of {len(found)} pairs of an LLM and lengths")
            options = forecasts(menu, expected)
            for kind, limits in limits_of(settings).items():
                loads = settings.output_tokens_per_s
                outcomes[kind] += recommended(menu, options, limits, loads, [None])[None]
        return Verdicts(outcomes, predicted)

    @property
    def _comparable(self) -> Measurements:
        rows = self.rows.measurements
        return rows.select(rows.closed_loop_today() & ~rows.in_doubt())

    def keep(self, verdicts: Verdicts, folder: Path) -> None:
        """Write what was found, and figures of it; the scores last, as the mark that all is there."""
        folder.mkdir(parents=True, exist_ok=True)
        scores = verdicts.scores
        with replacing(folder / "recommendations.csv") as temporary:
            _table([one for some in verdicts.outcomes.values() for one in some]).to_csv(
                temporary, index=False
            )
        with replacing(folder / "predictions.csv") as temporary:
            verdicts.prediction.judged.to_csv(temporary, index=False)
        plot_predictions(verdicts.prediction, folder / "predictions.png")
        plot_by_model(scores["per_model"], folder / "by_model.png")
        write_text(folder / SCORES_FILE, to_json(scores))


def _median_error(judged: pd.DataFrame) -> float | None:
    """Return the median of |predicted / measured - 1|; None without rows."""
    off = np.abs(judged["predicted"] / judged["measured"] - 1)
    return round(float(np.median(off)), 4) if len(off) else None


def _scored(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    return {
        name: None if np.isnan(value) else round(value, 4) for name, value in asdict(score(outcomes)).items()
    }


def _table(outcomes: Sequence[Outcome]) -> pd.DataFrame:
    """Return a row for every recommendation."""
    rows = []
    for one in outcomes:
        facts = asdict(one)
        (given, out), limits = facts.pop("lengths"), facts.pop("limits")
        tokens = {"input_tokens": given, "output_tokens": out}
        finite = {name: limit if np.isfinite(limit) else None for name, limit in limits.items()}
        rows.append({"model": facts.pop("model")} | tokens | finite | facts)
    return pd.DataFrame(rows)
