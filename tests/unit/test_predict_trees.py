"""Forests as they predict: kept in files, one beside another, and whatever the order of the rows."""

from pathlib import Path

import numpy as np
from sklearn.ensemble import ExtraTreesRegressor

from llmpilot.predict.pilot.trees import predict_all, read_forest, to_booster


def test_forests_beside_each_other_say_what_each_says_alone(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    features = rng.random((300, 5)).astype(np.float32)
    targets = [features @ rng.standard_normal(5) for _ in range(6)]
    forests = [
        to_booster(ExtraTreesRegressor(20, random_state=1).fit(features, target)) for target in targets
    ]
    alone = [forest.inplace_predict(features) for forest in forests]
    for sort_by in (0, 3):
        together = predict_all([(forest, features) for forest in forests], sort_by)
        for one, said in zip(alone, together, strict=True):
            np.testing.assert_array_equal(said, one.astype(float))
    forests[0].save_model(tmp_path / "forest.ubj")
    (again,) = predict_all([(read_forest(tmp_path / "forest.ubj"), features)], sort_by=1)
    np.testing.assert_array_equal(again, alone[0].astype(float))
