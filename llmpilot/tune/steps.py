"""The best settings of an engine's steps under a given max batch weight: how many tokens a step may hold, how
many requests run at once. TPE in an Optuna study of its own, behind that of the weight; the engine's own
defaults are tried first. The same command goes on with it, and several workers share it.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llmpilot.tune.database import explained, opened
from llmpilot.tune.trial import Outcome

Choices = Mapping[str, tuple[int, ...]]
"""Setting of the engine -> the values that are tried, rising."""
ROW, LOST = "row", "lost"


@dataclass(frozen=True)
class Begun:
    """A trial that was begun, and the settings that it is of."""

    trial: Any
    values: dict[str, int]


class StepStudy:
    """Trials of a service's step settings; better is more, unless `maximize` is false."""

    def __init__(
        self,
        url: str,
        name: str,
        choices: Choices,
        defaults: Mapping[str, int],
        *,
        maximize: bool,
        timeout_s: float,
    ) -> None:
        """Open the study, or create it.

        Raises:
            PilotError: the database cannot be used.
        """
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        logging.getLogger("alembic").setLevel(logging.WARNING)
        self.name, self._url, self._choices, self._maximize = name, url, choices, maximize
        with explained(url):
            self._study = optuna.create_study(
                storage=opened(url, timeout_s),
                study_name=name,
                direction="maximize" if maximize else "minimize",
                load_if_exists=True,
            )
            if not self._study.get_trials(deepcopy=False):
                first = {key: values.index(defaults[key]) for key, values in choices.items()}
                self._study.enqueue_trial(first)

    def rows(self) -> list[dict[str, Any]]:
        """Return the finished trials as the result file holds them."""
        with explained(self._url):
            trials = self._study.get_trials(deepcopy=False)
        return [trial.user_attrs[ROW] for trial in trials if ROW in trial.user_attrs]

    def ask(self, seed: int) -> Begun:
        """Begin the next trial, as TPE proposes it."""
        from optuna.samplers import TPESampler

        with explained(self._url):
            seed += len(self._study.get_trials(deepcopy=False))
            self._study.sampler = TPESampler(
                n_startup_trials=4, multivariate=True, constant_liar=True, seed=seed
            )
            trial = self._study.ask()
            at = {key: trial.suggest_int(key, 0, len(values) - 1) for key, values in self._choices.items()}
        return Begun(trial, {key: self._choices[key][index] for key, index in at.items()})

    def tell(self, begun: Begun, outcome: Outcome, weight: int) -> dict[str, Any]:
        """End a trial, which was measured under a max batch weight, and return its row."""
        from optuna.trial import TrialState

        row = {
            "number": begun.trial.number,
            **begun.values,
            "max_batch_weight": weight,
            "feasible": outcome.feasible,
            "reason": outcome.reason,
            "value": outcome.value,
            **outcome.figures,
        }
        with explained(self._url):
            begun.trial.set_user_attr(ROW, row)
            if outcome.feasible and outcome.value is not None:
                self._study.tell(begun.trial, outcome.value)
            else:
                self._study.tell(begun.trial, state=TrialState.PRUNED)
        return row

    def abandon(self, begun: Begun) -> None:
        """End a trial that was not measured to its end: for Optuna it is deleted."""
        from optuna.trial import TrialState

        with explained(self._url):
            begun.trial.set_user_attr(LOST, "in the middle of it")
            self._study.tell(begun.trial, state=TrialState.FAIL)

    def best(self) -> dict[str, Any] | None:
        """Return the row of the best trial, the earliest of equals; None where none has a value."""
        rows = [row for row in self.rows() if row["feasible"] and row["value"] is not None]
        sign = -1 if self._maximize else 1
        return min(rows, key=lambda row: (sign * row["value"], row["number"]), default=None)
