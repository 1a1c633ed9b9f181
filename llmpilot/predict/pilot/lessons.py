"""What the trees learn from: every row, and what physics that has not seen the row's LLM says of it.

For an LLM that was measured on some profiles, the trees learn to make use of that: of every LLM in the data
they are shown what physics missed on those same profiles, as they will be of this one.
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llmpilot.config import Gpu
from llmpilot.dataset import Dataset
from llmpilot.predict.pilot.cells import Known, Rows, cells_of, dataset_rows, known_of
from llmpilot.predict.pilot.difficulty import kin_of, traits_of
from llmpilot.predict.pilot.features import features_of
from llmpilot.predict.pilot.measured import METRICS
from llmpilot.predict.pilot.physics import Physics, fit_physics, weights_of
from llmpilot.predict.pilot.residuals import Cluster
from llmpilot.predict.pilot.simulated import SimulatorPhysics, fit_simulator
from llmpilot.predict.prediction import FAILURES_ALLOWED, Floats

Mask = NDArray[np.bool_]
Profile = tuple[str, int]
"""A GPU type and how many of them."""
PHYSICS = ("closed_form", "simulator")
OWN = ""
"""The name, among those of the rows, of the LLM that will be asked about: no other is called so."""
MOST_SEEN = 3
"""Profiles seen, at most: the fewer are hidden, the less shows how far predictions for them stray."""
KEPT = 12
"""Data sets whose physics are kept: an evaluation asks for each again under every seed."""


def profile_of(gpu: Gpu) -> Profile:
    """Return what tells a profile from others."""
    return (gpu.name, gpu.count)


def carried(missed: Floats, there: Floats, doublings: Floats) -> Floats:
    """Return what was `missed` [k, 2] at the loads `there` [k], carried over to other loads, [n, 2].

    In between by straight lines, beyond the ends as at the end; where a load was measured more than once,
    the mean counts. Nothing measured is nothing missed. Loads are log2 of the users.
    """
    if not len(there):
        return np.zeros((len(doublings), 2))
    loads, at = np.unique(there, return_inverse=True)
    means = [np.bincount(at, weights=missed[:, metric]) / np.bincount(at) for metric in range(2)]
    return np.column_stack([np.interp(doublings, loads, mean) for mean in means])


@dataclass(frozen=True)
class Lessons:
    """n rows: the name of each one's LLM, logs of its latencies [n, 2], and how much it counts.

    `failing` [n] is 1 where the load or the GPUs cost more than 1% of the requests, 0 where not, NaN where
    failures were not counted. `said` and `missed` [n, 2] are, for every kind of physics, what it says of each
    row and what it missed of the row's LLM on the profiles `seen_on`; `seen` [n] are the rows there.
    `queue` [n] is how long requests wait, as the simulator has it (`SimulatorPhysics.queue`).
    """

    names: NDArray[np.object_]
    rows: Rows
    truth: Floats
    failing: Floats
    weights: Floats
    known: Known
    said: dict[str, Floats]
    queue: Floats
    missed: dict[str, Floats]
    seen_on: tuple[Profile, ...]
    seen: Mask

    @property
    def llms(self) -> list[str]:
        """The LLMs to learn from, without the one that will be asked about."""
        return sorted(set(self.names) - {OWN})

    def seen_by(self, view: Sequence[str]) -> Floats:
        """Return the features of trees that see these kinds of physics."""
        missed = [self.missed[kind] for kind in view] if self.seen_on else []
        return features_of(cells_of(self.rows, self.known), [self.said[kind] for kind in view], missed)

    def clusters(self, missed: Floats) -> list[Cluster]:
        """Return what was missed [n] of each LLM where it is not shown."""
        doublings, kinds = np.log2(self.rows.users), cells_of(self.rows, self.known).kind
        others = np.asarray(self.kin)[kinds] - 1.0
        traits = traits_of(self.queue, others)
        hidden = ((self.names == name) & ~self.seen for name in self.llms)
        return [
            Cluster(self.rows.pair[at], doublings[at], missed[at], traits[at]) for at in hidden if at.any()
        ]

    @property
    def kin(self) -> tuple[int, int, int]:
        """How many LLMs there are of each kind of batching, without the one that will be asked about."""
        kinds = cells_of(self.rows, self.known).kind
        return kin_of(np.array([kinds[self.names == name][0] for name in self.llms]))


def lessons_of(data: Dataset, own: Dataset | None = None) -> Lessons:
    """Return what there is to learn for an LLM that is not in `data`, of which `own` was measured."""
    base = physics_of(data)
    names, rows, truth, said, queue = base.names, base.rows, base.truth, base.said, base.queue
    failing = _failing(data)
    weights = weights_of(names)
    seen_on: tuple[Profile, ...] = ()
    if own is not None and (seen_on := _shared(own, rows, names)):
        shown = dataset_rows(own)
        kept = _on(shown, seen_on)
        shown, own = shown.select(kept), own.select(kept)
        names = np.concatenate([names, np.full(len(shown), OWN, dtype=object)])
        rows, truth = rows.followed_by(shown), np.concatenate([truth, _logs(own)])
        failing = np.concatenate([failing, _failing(own)])
        weights = np.concatenate([weights, np.ones(len(shown))])
        ahead = base.say(shown)
        said = {kind: np.concatenate([said[kind], ahead[kind]]) for kind in PHYSICS}
        queue = np.concatenate([queue, base.simulator.queue(shown)])
    seen = _on(rows, seen_on)
    doublings, missed = np.log2(rows.users), {}
    for kind in PHYSICS:
        missed[kind] = np.zeros_like(truth)
        for name in set(names) if seen_on else ():
            of, there = names == name, (names == name) & seen
            errors = (truth - said[kind])[there]
            missed[kind][of] = carried(errors, doublings[there], doublings[of])
    return Lessons(names, rows, truth, failing, weights, base.known, said, queue, missed, seen_on, seen)


def _shared(own: Dataset, rows: Rows, names: NDArray[np.object_]) -> tuple[Profile, ...]:
    """Return the profiles of `own` from which can be learned what a measurement there is worth.

    Those that most other LLMs were measured on, as long as two of them leave something hidden.
    """
    measured = {profile_of(gpu) for _, gpu in dataset_rows(own).pairs}
    llms = {profile: len(set(names[_on(rows, [profile])])) for profile in measured}
    ranked = sorted((p for p in measured if llms[p]), key=lambda profile: (-llms[profile], profile))
    for most in range(MOST_SEEN, 0, -1):
        if len(set(names[~_on(rows, ranked[:most])])) >= 2:
            return tuple(ranked[:most])
    return ()


def _on(rows: Rows, profiles: Iterable[Profile]) -> Mask:
    wanted = set(profiles)
    return np.array([profile_of(gpu) in wanted for _, gpu in rows.pairs], dtype=bool)[rows.pair]


def _logs(data: Dataset) -> Floats:
    return np.asarray(np.log(data.table[list(METRICS)].to_numpy(float)))


def _failing(data: Dataset) -> Floats:
    """Return whether more than 1% of the requests fail.

    An LLM that loses as much at its best has another cause for it than load and GPUs: nothing is learned from
    it, for its rate comes and goes without a pattern. One that was never measured with one user has not been
    seen at its best.
    """
    rates, names = data.table["failure_rate"].astype(float), data.table["model"]
    at_best = rates.groupby(names).transform("min")
    seen_alone = data.table["users"].groupby(names).transform("min") <= 1
    lost = rates.mask(seen_alone & (at_best > FAILURES_ALLOWED)).to_numpy()
    return np.where(np.isnan(lost), np.nan, lost > FAILURES_ALLOWED)


class FoldedPhysics:
    """The rows of a data set, physics fitted on all of them, and what physics fitted without the row's LLM
    `said` of each and of its `queue`."""

    def __init__(self, data: Dataset) -> None:
        self.names = data.table["model"].to_numpy(dtype=object)
        self.rows, self.known, self.truth = dataset_rows(data), known_of(data), _logs(data)
        self.closed_form, self.simulator = self._fit(None)
        self.said = {kind: np.empty_like(self.truth) for kind in PHYSICS}
        self.queue = np.empty(len(self.truth))
        for name in set(self.names):
            of, physics = self.names == name, self._fit(name)
            own = self.rows.select(of)
            for kind, said in _say(physics, own, self.known).items():
                self.said[kind][of] = said
            self.queue[of] = physics[1].queue(own)

    def say(self, rows: Rows) -> dict[str, Floats]:
        """Return what physics fitted on all rows says of others, [n, 2] a kind."""
        return _say((self.closed_form, self.simulator), rows, self.known)

    def _fit(self, without: str | None) -> tuple[Physics, SimulatorPhysics]:
        kept = self.names != without
        rows, weights = self.rows.select(kept), weights_of(self.names)[kept]
        closed_form = fit_physics(cells_of(rows, self.known), self.truth[kept], weights, self.known)
        return closed_form, fit_simulator(self.rows.pairs[at] for at in sorted(set(rows.pair.tolist())))


def _say(physics: tuple[Physics, SimulatorPhysics], rows: Rows, known: Known) -> dict[str, Floats]:
    closed_form, simulator = physics
    said = (closed_form.predict(cells_of(rows, known)), simulator.predict(rows))
    return dict(zip(PHYSICS, said, strict=True))


_kept: OrderedDict[str, FoldedPhysics] = OrderedDict()


def physics_of(data: Dataset) -> FoldedPhysics:
    """Return the physics of a data set; those of the last few data sets are kept, they take seconds."""
    key = data.content_hash
    found = _kept.pop(key, None) or FoldedPhysics(data)
    _kept[key] = found
    while len(_kept) > KEPT:
        _kept.popitem(last=False)
    return found
