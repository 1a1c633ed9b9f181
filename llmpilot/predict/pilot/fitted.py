"""The pilot predictor after learning: what it predicts, and how it is kept in files without code."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import xgboost

from llmpilot.config import Gpu, Model
from llmpilot.errors import ConfigError
from llmpilot.files import to_json, write_text
from llmpilot.predict.pilot.cells import Known, Rows, cells_of, grid_rows
from llmpilot.predict.pilot.features import features_of
from llmpilot.predict.pilot.measured import ITL, METRICS, NTTFT, measured_of
from llmpilot.predict.pilot.physics import Physics
from llmpilot.predict.pilot.residuals import Cluster, Residuals
from llmpilot.predict.pilot.simulated import SimulatorPhysics
from llmpilot.predict.prediction import Draws, Floats, Prediction
from llmpilot.predict.predictor import Fitted

FACTS_FILE, OUT_OF_FOLD_FILE = "pilot.json", "out_of_fold.csv"
FORMAT = 1


@dataclass(frozen=True)
class FittedView:
    """One view: the physics that its trees see, and a forest and the residuals' spread for each metric."""

    physics: tuple[str, ...]
    forests: tuple[xgboost.Booster, ...]
    residuals: tuple[Residuals, ...]

    def mean(self, metric: int, features: Floats) -> Floats:
        """Return the logs of a metric, [n]."""
        return np.asarray(self.forests[metric].inplace_predict(features), dtype=float)


@dataclass(frozen=True)
class FittedPilot(Fitted):
    """What was learned. The same question gets the same answer: `draws` joint samples come from `seed`.

    `out_of_fold` has the rows that were learned from (model, gpu, count, users) and the log errors nttft and
    itl, measured minus predicted, of predictions made without the row's LLM.
    """

    known: Known
    closed_form: Physics
    simulator: SimulatorPhysics
    views: tuple[FittedView, ...]
    draws: int
    seed: int
    out_of_fold: pd.DataFrame

    def predict(
        self,
        model: Model,
        profiles: Sequence[Gpu],
        users: Sequence[int],
        measured: pd.DataFrame | None = None,
    ) -> Prediction:
        """Return latencies with draws; measured cells are taken as they are, and pull their neighbours."""
        grid, shown = grid_rows(model, profiles, users), measured_of(model, profiles, measured)
        features = self._features(grid)
        features_there = self._features(shown.rows) if shown else features
        shape, rng = (len(profiles), len(users)), np.random.default_rng(self.seed)
        doublings = np.log2(np.asarray(users, dtype=float))
        on_grid = shown.on_grid(len(profiles), users) if shown else None
        answers, samples = [], []
        for metric in (NTTFT, ITL):
            medians, draws = [], []
            for view, seen, there in zip(self.views, features, features_there, strict=True):
                mean = view.mean(metric, seen).reshape(shape)
                known = None
                if shown:
                    missed = shown.truth[:, metric] - view.mean(metric, there)
                    known = Cluster(shown.profile, np.log2(shown.rows.users), missed)
                share = -(-self.draws // len(self.views))
                drawn, pull = view.residuals[metric].draw(shape[0], doublings, share, rng, known)
                medians.append(mean + pull)
                draws.append(mean + drawn)
            median, sample = np.mean(medians, axis=0), np.concatenate(draws)[: self.draws]
            if on_grid is not None:
                median = np.where(np.isfinite(on_grid[metric]), on_grid[metric], median)
                sample = np.where(np.isfinite(on_grid[metric]), on_grid[metric], sample)
            answers.append(np.exp(median))
            samples.append(np.exp(sample))
        return Prediction(
            model=model,
            profiles=tuple(profiles),
            users=tuple(users),
            nttft_ms=answers[NTTFT],
            itl_ms=answers[ITL],
            draws=Draws(samples[NTTFT], samples[ITL]),
        )

    def _features(self, rows: Rows) -> list[Floats]:
        """Return what each view's trees see of the rows."""
        cells = cells_of(rows, self.known)
        wanted = {name for view in self.views for name in view.physics}
        said = {"closed_form": self.closed_form.predict(cells)} if "closed_form" in wanted else {}
        if "simulator" in wanted:
            said["simulator"] = self.simulator.predict(rows)
        return [features_of(cells, [said[name] for name in view.physics]) for view in self.views]

    def save(self, folder: Path) -> None:
        """Write everything to a folder: JSON, CSV, and XGBoost's own files. Nothing in them is code."""
        folder.mkdir(parents=True, exist_ok=True)
        views = [
            {"physics": view.physics, "variances": [one.variances for one in view.residuals]}
            for view in self.views
        ]
        facts = {
            "format": FORMAT,
            "known": asdict(self.known),
            "closed_form": {"factors": self.closed_form.factors, "hosts": self.closed_form.hosts},
            "simulator": self.simulator.factors,
            "views": views,
            "draws": self.draws,
            "seed": self.seed,
        }
        for number, view in enumerate(self.views):
            for metric, forest in zip(METRICS, view.forests, strict=True):
                forest.save_model(folder / f"{number}_{metric}.ubj")
        self.out_of_fold.to_csv(folder / OUT_OF_FOLD_FILE, index=False)
        write_text(folder / FACTS_FILE, to_json(facts))


def load_pilot(folder: Path) -> FittedPilot:
    """Return what `FittedPilot.save` wrote.

    Raises:
        ConfigError: the folder holds no predictor, or one of another version or damaged.
    """
    try:
        facts = json.loads((folder / FACTS_FILE).read_text(encoding="utf-8"))
        if facts["format"] != FORMAT:
            raise ValueError(f"its format is {facts['format']}, this version reads {FORMAT}")
        known = Known(**facts["known"])
        closed_form = facts["closed_form"]
        views = tuple(
            FittedView(
                physics=tuple(view["physics"]),
                forests=tuple(
                    xgboost.Booster(model_file=folder / f"{number}_{name}.ubj") for name in METRICS
                ),
                residuals=tuple(Residuals(tuple(variances)) for variances in view["variances"]),
            )
            for number, view in enumerate(facts["views"])
        )
        return FittedPilot(
            known=known,
            closed_form=Physics(known, closed_form["factors"], tuple(closed_form["hosts"])),
            simulator=SimulatorPhysics(facts["simulator"]),
            views=views,
            draws=facts["draws"],
            seed=facts["seed"],
            out_of_fold=pd.read_csv(folder / OUT_OF_FOLD_FILE),
        )
    except (OSError, KeyError, TypeError, ValueError, xgboost.core.XGBoostError) as error:
        raise ConfigError(
            "this folder holds no fitted pilot predictor",
            given=f"{folder}: {error}",
            cure="fit it anew: task=train, or delete the folder if it is a cache",
        ) from None
