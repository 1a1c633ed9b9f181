"""Extremely randomized trees (Geurts et al., 2006), grown by scikit-learn and kept as an XGBoost model.

XGBoost's files hold numbers and nothing that runs, and its prediction is quicker; scikit-learn's own way to
keep a forest is a pickle.
"""

import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import xgboost
from numpy.typing import NDArray
from sklearn.ensemble import ExtraTreesRegressor

from llmpilot.predict.prediction import Floats

LEAST_IN_LEAF = 2
FEATURES_PER_SPLIT = 0.5
ONE_THREAD = {"nthread": 1}
"""Threads that share a forest as small as ours wait for each other for longer than they compute."""
ROOT = 2**31 - 1  # what XGBoost writes for the parent of a root


def grow(features: Floats, target: Floats, weights: Floats, trees: int, seed: int) -> ExtraTreesRegressor:
    """Return a forest fitted on `features` [n, k] and `target` [n]."""
    forest = ExtraTreesRegressor(
        n_estimators=trees,
        min_samples_leaf=LEAST_IN_LEAF,
        max_features=FEATURES_PER_SPLIT,
        random_state=seed,
    )
    return forest.fit(features, target, sample_weight=weights)


def to_booster(forest: ExtraTreesRegressor) -> xgboost.Booster:
    """Return the same function as an XGBoost model: each leaf holds its share of the forest's mean."""
    count, features = len(forest.estimators_), int(forest.n_features_in_)
    trees = [_tree(number, one.tree_, count, features) for number, one in enumerate(forest.estimators_)]
    model = {
        "gbtree_model_param": {"num_parallel_tree": "1", "num_trees": str(count)},
        "iteration_indptr": list(range(count + 1)),
        "tree_info": [0] * count,
        "trees": trees,
    }
    learner = {
        "attributes": {},
        "feature_names": [],
        "feature_types": [],
        "gradient_booster": {"model": model, "name": "gbtree"},
        "learner_model_param": {
            "base_score": "0E0",
            "boost_from_average": "0",
            "num_class": "0",
            "num_feature": str(features),
            "num_target": "1",
        },
        "objective": {"name": "reg:squarederror", "reg_loss_param": {"scale_pos_weight": "1"}},
    }
    booster = xgboost.Booster(ONE_THREAD)
    booster.load_model(bytearray(json.dumps({"learner": learner, "version": [2, 1, 0]}).encode()))
    return booster


def read_forest(file: Path) -> xgboost.Booster:
    """Return a forest that was saved to a file."""
    return xgboost.Booster(ONE_THREAD, model_file=file)


def predict_all(questions: Sequence[tuple[xgboost.Booster, Floats]], sort_by: int) -> list[Floats]:
    """Return what each forest says of its features [n, k], [n]; several are at work at once.

    Rows are gone through by what they have in column `sort_by`, which changes nothing but the time: like rows
    take the same turns in a tree one after the other, and a processor guesses them right more often.
    """
    order, alike = {}, {}
    for rows in {id(features): features for _, features in questions}.values():  # several may see the same
        order[id(rows)] = np.argsort(rows[:, sort_by])
        alike[id(rows)] = rows[order[id(rows)]]
    started = [_helpers().submit(forest.inplace_predict, alike[id(rows)]) for forest, rows in questions]
    said: list[Floats] = [np.empty(len(rows)) for _, rows in questions]
    for at in reversed(range(len(questions))):  # the helpers begin at the other end
        forest, rows = questions[at]
        mine = started[at].cancel()
        said[at][order[id(rows)]] = forest.inplace_predict(alike[id(rows)]) if mine else started[at].result()
    return said


@cache
def _helpers() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max(1, (os.cpu_count() or 1) - 1), thread_name_prefix="forest")


def _tree(number: int, tree: Any, trees: int, features: int) -> dict[str, Any]:
    order = _siblings_together(tree.children_left, tree.children_right)
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    leaf = tree.children_left[order] < 0
    left = np.where(leaf, -1, place[tree.children_left[order]])
    right = np.where(leaf, -1, place[tree.children_right[order]])
    parents = np.full(len(order), ROOT)
    parents[left[~leaf]] = parents[right[~leaf]] = np.flatnonzero(~leaf)
    # scikit-learn goes left on "not above", XGBoost on "below": the next larger float32 is the same border.
    border = np.nextafter(tree.threshold[order].astype(np.float32), np.float32(np.inf))
    value = tree.value[order, 0, 0] / trees
    nothing = [0.0] * len(order)
    return {
        "base_weights": nothing,
        "categories": [],
        "categories_nodes": [],
        "categories_segments": [],
        "categories_sizes": [],
        "default_left": [0] * len(order),
        "id": number,
        "left_children": left.tolist(),
        "loss_changes": nothing,
        "parents": parents.tolist(),
        "right_children": right.tolist(),
        "split_conditions": np.where(leaf, value, border).astype(float).tolist(),
        "split_indices": np.where(leaf, 0, tree.feature[order]).tolist(),
        "split_type": [0] * len(order),
        "sum_hessian": nothing,
        "tree_param": {
            "num_deleted": "0",
            "num_feature": str(features),
            "num_nodes": str(len(order)),
            "size_leaf_vector": "1",
        },
    }


def _siblings_together(left: NDArray[np.int64], right: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the nodes in an order where a right child follows its left one: XGBoost looks for it there."""
    order = [0]
    for node in order:
        if left[node] >= 0:
            order += [int(left[node]), int(right[node])]
    return np.array(order)
