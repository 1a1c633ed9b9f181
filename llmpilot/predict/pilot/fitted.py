"""The pilot predictor after learning: what it predicts, and how it is kept in files without code."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import xgboost

from llmpilot.errors import ConfigError
from llmpilot.files import to_json, write_text
from llmpilot.predict.pilot.cells import Cells, Known, Rows, cells_of, grid_rows
from llmpilot.predict.pilot.difficulty import traits_of
from llmpilot.predict.pilot.features import features_of
from llmpilot.predict.pilot.lessons import Profile, carried, profile_of
from llmpilot.predict.pilot.measured import ITL, METRICS, NTTFT, Measured, measured_of
from llmpilot.predict.pilot.physics import Physics
from llmpilot.predict.pilot.residuals import Cluster, Residuals
from llmpilot.predict.pilot.simulated import SimulatorPhysics
from llmpilot.predict.pilot.straying import PerMetric, PerWidth, Strayed, replaced, strayed, strayed_unseen
from llmpilot.predict.pilot.trees import predict_all, read_forest
from llmpilot.predict.prediction import FAILURES_ALLOWED, Draws, Floats, Prediction, Query
from llmpilot.predict.predictor import Fitted

FACTS_FILE, OUT_OF_FOLD_FILE, FAILURES_FILE = "pilot.json", "out_of_fold.csv", "failures.ubj"
FORMAT = 4
SORT_BY = -1
"""The feature by which rows are alike: the last is the latency of some physics, if there is any."""


@dataclass(frozen=True)
class FittedView:
    """One view: the physics that its trees see, and a forest for each metric."""

    physics: tuple[str, ...]
    forests: tuple[xgboost.Booster, ...]

    def mean(self, metric: int, features: Floats) -> Floats:
        """Return the logs of a metric, [n]."""
        return np.asarray(self.forests[metric].inplace_predict(features), dtype=float)


@dataclass(frozen=True)
class FittedPilot(Fitted):
    """What was learned. The same question gets the same answer: `draws` joint samples come from `seed`.

    `residuals` are the spread of each metric, by each account of its width; `kin` says how many LLMs of each
    kind were learned from. With profiles `seen_on` it was learned for one LLM, and `predict` is to be given
    what was measured of it there; what it is given beyond them moves and narrows the draws. `out_of_fold` has
    the rows that were learned from (model, gpu, count, users), but for those profiles, and the log errors
    nttft and itl, measured minus predicted, of predictions made without the row's LLM.
    """

    known: Known
    closed_form: Physics
    simulator: SimulatorPhysics
    views: tuple[FittedView, ...]
    residuals: PerMetric[PerWidth[Residuals]]
    kin: tuple[int, int, int]
    failures: xgboost.Booster | None
    seen_on: tuple[Profile, ...]
    draws: int
    seed: int
    out_of_fold: pd.DataFrame

    def answer(self, query: Query) -> Prediction:
        """Return latencies with draws; measured cells are taken as they are, and pull their neighbours.

        The draws come from all accounts of the residuals' width in equal parts.
        """
        model, profiles, users = query.model, query.profiles, query.users
        grid, shown = grid_rows(model, profiles, users), measured_of(model, profiles, query.measured)
        learned, shown_besides = shown.split(self.seen_on) if shown else (None, None)
        features = self._features(grid, learned)
        shape = (len(profiles), len(users))
        on_grid = [shown.on_grid(logs, len(profiles), users) for logs in shown.truth.T] if shown else None
        drawn = self._strayed(shown_besides, learned, shape[0], users)
        if learned:
            # Between the loads measured on a profile seen, what was measured there narrows the draws as well.
            there = [at for at, gpu in enumerate(profiles) if profile_of(gpu) in self.seen_on]
            drawn = replaced(drawn, self._strayed(learned, learned, shape[0], users), there)
        means, failures = self._forests_say(features, shape)
        traits = self._traits(grid)
        answers, samples = [], []
        for metric, of_widths in enumerate(drawn):
            pulls, sample, first = [], np.empty((self.draws, *shape)), 0
            for residuals, (strays, pull) in zip(self.residuals[metric], of_widths, strict=True):
                scale = residuals.scale(traits).reshape(shape)
                pulls.append(pull * scale)
                part = sample[first : first + len(strays)]
                np.multiply(strays[: len(part)], scale, out=part)
                first += len(strays)
            sample += means[metric]
            median = means[metric] + np.mean(pulls, axis=0)
            if on_grid is not None:
                median = np.where(np.isfinite(on_grid[metric]), on_grid[metric], median)
                sample = np.where(np.isfinite(on_grid[metric]), on_grid[metric], sample)
            answers.append(np.exp(median))
            samples.append(sample)
        return Prediction(
            model=model,
            profiles=profiles,
            users=users,
            nttft_ms=answers[NTTFT],
            itl_ms=answers[ITL],
            failing=_failing(failures, shown, users),
            draws=Draws.of_logs(samples[NTTFT], samples[ITL]),
        )

    def _strayed(
        self,
        shown: Measured | None,
        learned: Measured | None,
        profiles: int,
        users: Sequence[int],
    ) -> Strayed:
        """Return how far the truth may lie from what the trees say, given some measured cells."""
        draws, seed = -(-self.draws // len(self.residuals[0])), self.seed
        if shown is None:
            return strayed_unseen(self.residuals, profiles, tuple(users), draws, seed)
        missed = self._missed(shown, learned)
        return strayed(self.residuals, missed, profiles=profiles, users=users, draws=draws, seed=seed)

    def _traits(self, rows: Rows) -> Floats:
        """Return what makes cells of an LLM that was not learned from hard to predict, [n, k]."""
        kinds = cells_of(rows, self.known).kind
        return traits_of(self.simulator.queue(rows), np.asarray(self.kin, dtype=float)[kinds])

    def _forests_say(
        self, features: list[Floats], shape: tuple[int, int]
    ) -> tuple[list[Floats], Floats | None]:
        """Return the log means, metric by metric, and how probable failures are; [shape]."""
        questions = [
            (forest, seen) for view, seen in zip(self.views, features, strict=True) for forest in view.forests
        ]
        if self.failures is not None:
            questions.append((self.failures, features[int(np.argmax([len(v.physics) for v in self.views]))]))
        said = [one.reshape(shape) for one in predict_all(questions, sort_by=SORT_BY)]
        metrics = len(METRICS)
        of_views = metrics * len(self.views)
        means = [np.mean(said[metric:of_views:metrics], axis=0, dtype=float) for metric in (NTTFT, ITL)]
        return means, said[of_views] if len(said) > of_views else None

    def _missed(self, shown: Measured, learned: Measured | None) -> PerMetric[Cluster]:
        """Return what the trees miss of the measured cells that they have not learned from."""
        there = self._features(shown.rows, learned)
        doublings, traits = np.log2(shown.rows.users), self._traits(shown.rows)
        means = (
            np.mean([view.mean(metric, seen) for view, seen in zip(self.views, there, strict=True)], axis=0)
            for metric in (NTTFT, ITL)
        )
        return tuple(
            Cluster(shown.profile, doublings, truth - mean, traits)
            for truth, mean in zip(shown.truth.T, means, strict=True)
        )

    def _features(self, rows: Rows, learned: Measured | None) -> list[Floats]:
        """Return what each view's trees see of the rows; `learned` are the cells on the profiles seen."""
        cells = cells_of(rows, self.known)
        said = self._said(rows, cells)
        missed = {kind: np.zeros((len(rows), len(METRICS))) for kind in (said if self.seen_on else ())}
        if learned:
            ahead = self._said(learned.rows, cells_of(learned.rows, self.known))
            there, doublings = np.log2(learned.rows.users), np.log2(rows.users)
            missed = {kind: carried(learned.truth - ahead[kind], there, doublings) for kind in said}
        return [
            features_of(
                cells,
                [said[kind] for kind in view.physics],
                [missed[kind] for kind in view.physics if kind in missed],
            )
            for view in self.views
        ]

    def _said(self, rows: Rows, cells: Cells) -> dict[str, Floats]:
        """Return what every kind of physics that a view sees says of the rows, [n, 2]."""
        wanted = {kind for view in self.views for kind in view.physics}
        said = {"closed_form": self.closed_form.predict(cells)} if "closed_form" in wanted else {}
        if "simulator" in wanted:
            said["simulator"] = self.simulator.predict(rows)
        return said

    def save(self, folder: Path) -> None:
        """Write everything to a folder: JSON, CSV, and XGBoost's own format. Nothing in them is code."""
        folder.mkdir(parents=True, exist_ok=True)
        facts = {
            "format": FORMAT,
            "known": asdict(self.known),
            "closed_form": {"factors": self.closed_form.factors, "hosts": self.closed_form.hosts},
            "simulator": self.simulator.factors,
            "views": [view.physics for view in self.views],
            "residuals": [[asdict(one) for one in widths] for widths in self.residuals],
            "kin": self.kin,
            "seen_on": self.seen_on,
            "failures": self.failures is not None,
            "draws": self.draws,
            "seed": self.seed,
        }
        for number, view in enumerate(self.views):
            for metric, forest in zip(METRICS, view.forests, strict=True):
                # XGBoost's own way to a file knows no full disk: only an error of its own.
                (folder / f"{number}_{metric}.ubj").write_bytes(forest.save_raw("ubj"))
        if self.failures is not None:
            (folder / FAILURES_FILE).write_bytes(self.failures.save_raw("ubj"))
        self.out_of_fold.to_csv(folder / OUT_OF_FOLD_FILE, index=False)
        write_text(folder / FACTS_FILE, to_json(facts))


def _failing(said: Floats | None, shown: Measured | None, users: Sequence[int]) -> Floats | None:
    """Return how probable it is that more than 1% of the requests fail, given what was measured."""
    if said is None:
        return None
    # More load never mends a service.
    failing = np.maximum.accumulate(np.clip(said, 0.0, 1.0), axis=1)
    if shown is None or not np.isfinite(shown.failure_rate).any():
        return failing
    if shown.rows.users.min() <= 1 and np.nanmin(shown.failure_rate) > FAILURES_ALLOWED:
        return np.ones(said.shape)  # what it loses even with one user has another cause than the GPUs
    lost = shown.on_grid(shown.failure_rate, len(said), users)
    return np.where(np.isfinite(lost), lost > FAILURES_ALLOWED, failing)


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
                physics=tuple(view),
                forests=tuple(read_forest(folder / f"{number}_{name}.ubj") for name in METRICS),
            )
            for number, view in enumerate(facts["views"])
        )
        return FittedPilot(
            known=known,
            closed_form=Physics(known, closed_form["factors"], tuple(closed_form["hosts"])),
            simulator=SimulatorPhysics(facts["simulator"]),
            views=views,
            residuals=tuple(
                tuple(
                    Residuals(tuple(one["variances"]), one["freedom"], tuple(one["widening"]))
                    for one in widths
                )
                for widths in facts["residuals"]
            ),
            kin=tuple(facts["kin"]),
            failures=read_forest(folder / FAILURES_FILE) if facts["failures"] else None,
            seen_on=tuple((gpu, count) for gpu, count in facts["seen_on"]),
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
