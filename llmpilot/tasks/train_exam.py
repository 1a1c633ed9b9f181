"""What task `train` judges predictors by: the nested evaluation, and its outcome as files."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmpilot import interrupts
from llmpilot.console import err
from llmpilot.dataset import Dataset
from llmpilot.files import to_json, write_text
from llmpilot.predict.decision import Need
from llmpilot.predict.evaluation import Fold, evaluate
from llmpilot.predict.predictor import Predictor
from llmpilot.predict.report import predictions_table, recommendations_table, summary
from llmpilot.processes import workers
from llmpilot.serving.contest import terms_of
from llmpilot.serving.figures import plot_by_model, plot_predictions
from llmpilot.tasks.evaluate import Evaluation

SCORES_FILE = "scores.json"


@dataclass(frozen=True)
class Exam:
    """On what, and how, predictors are judged. The first need is the single setting, the others the grid."""

    data: Dataset
    needs: tuple[Need, ...]
    seeds: range
    settings: Evaluation

    @property
    def terms(self) -> str:
        """What a score depends on but the predictor, as a hash."""
        return terms_of(self.data, self.needs, self.seeds, self.settings.measured)

    @property
    def _both(self) -> list[Need]:
        return [*self.needs, *(need.counting_failures() for need in self.needs)]

    def folds(self, predictor: Predictor) -> list[Fold]:
        """Return a fold for each seed and LLM; says on a terminal how far it is."""
        total, folds = len(self.seeds) * len(self.data.models), []
        with workers(self.settings.workers, "evaluate.workers") as run_on, err.status("") as status:
            measured = self.settings.measured
            for fold in evaluate(predictor, self.data, self._both, self.seeds, measured=measured, run=run_on):
                folds.append(fold)
                interrupts.check()
                status.update(f"{predictor.name}: {len(folds)} of {total} folds, last {fold.model}")
        return folds

    def scores(self, folds: Sequence[Fold]) -> dict[str, Any]:
        """Return the scores as fractions, under the names that task=evaluate gives them."""
        return summary(folds, len(self.needs))

    def keep(self, folds: Sequence[Fold], folder: Path) -> None:
        """Write what was found, and figures of it; the scores last, as the mark that all is there."""
        folder.mkdir(parents=True, exist_ok=True)
        predictions_table(folds).to_csv(folder / "predictions.csv", index=False)
        recommendations_table(folds, self._both).to_csv(folder / "recommendations.csv", index=False)
        scores = self.scores(folds)
        plot_predictions(folds, folder / "predictions.png")
        plot_by_model(scores["per_model"], folder / "by_model.png")
        write_text(folder / SCORES_FILE, to_json(scores))
