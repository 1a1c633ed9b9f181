"""How far predictions stray from the truth, and together where: a Student-t process over one LLM's residuals.

Residuals are measured minus predicted logs, of predictions made without the LLM in question. What an LLM's
cells share, and what the loads of one profile share, is found by the most probable variances. Some LLMs are
far harder to predict than others: each has a scale of its own, and the fewer the degrees of freedom, the more
they differ (Shah et al., AISTATS 2014). So are some cells, by traits that are known beforehand: a residual is
what the process says, times the cell's scale. Ten LLMs do not settle whether that holds for the next one:
there are two accounts of the width, one by traits and one that knows of none. For an LLM that nobody has
measured this is the spread of what may be true; its measured cells move and narrow it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import log, log1p

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve
from scipy.optimize import minimize
from scipy.special import digamma, gammaln

from llmpilot.predict.prediction import Floats

Ints = NDArray[np.int64]

PRIOR_VARIANCES = (0.04, 0.02, 0.02, 0.01, 0.003)
"""Of what an LLM's cells share: everywhere, and at like loads; of what the loads of one of its profiles
share: all, and like ones; and of a single cell."""
PRIOR_FREEDOM = 5.0
"""Degrees of freedom."""
PRIOR_SPREAD = 1.0
"""How sure these are (log units); and of a trait, that it does nothing to the scale."""
SPREAD = 0.9
"""Of the draws, over what the most probable variances say: the 80% intervals of LLMs left out then hold 84%
of the measured latencies, without it 86% (experiments/10_predictor)."""
LLM_LENGTH, PROFILE_LENGTH = 2.0, 1.0
"""Loads are alike where they differ by few doublings."""
JITTER = 1e-8
LARGEST_SCALE = 50.0
"""Of an LLM, over the usual: anything may be true under it, and no latency leaves what a float can hold."""


@dataclass(frozen=True)
class Cluster:
    """One LLM's cells: `profile` [n] says which belong to one profile, `doublings` [n] is log2 of the users,
    `residual` [n] what was found there, `traits` [n, k] what makes them hard to predict."""

    profile: Ints
    doublings: Floats
    residual: Floats
    traits: Floats


@dataclass(frozen=True)
class Residuals:
    """The variances found, in the order of PRIOR_VARIANCES, the degrees of freedom, and what a unit of each
    trait adds to the log of a cell's scale: of the first traits, if there are fewer widenings."""

    variances: tuple[float, ...]
    freedom: float
    widening: tuple[float, ...] = ()

    def scale(self, traits: Floats) -> Floats:
        """Return the scale of cells [n] with these traits [n, k]."""
        return np.asarray(np.exp(traits[:, : len(self.widening)] @ np.asarray(self.widening)))

    def draw(
        self,
        profiles: int,
        doublings: Floats,
        draws: int,
        rng: np.random.Generator,
        known: Cluster | None = None,
    ) -> tuple[Floats, Floats]:
        """Return joint residuals [draw, profile, load] and their mean [profile, load], over cells' scales.

        A cell's own noise is in the draws, for what one measures has it. `known` are measured cells of this
        LLM; a profile beyond the last is one that is not asked for. Prior draws are corrected by what was
        measured (Matheron's rule), so that no large covariance is factorized.
        """
        noise = self.variances[4] ** 0.5
        if known is None or not len(known.residual):
            free = self._prior(profiles, doublings, draws, rng)
            free = free + noise * rng.standard_normal(free.shape)
            return SPREAD * free * self._scales(draws, rng), np.zeros(free.shape[1:])
        loads = np.union1d(doublings, known.doublings)
        asked = np.searchsorted(loads, doublings)
        free = self._prior(max(profiles, 1 + int(known.profile.max())), loads, draws, rng)
        there = free[:, known.profile, np.searchsorted(loads, known.doublings)]
        there = there + noise * rng.standard_normal(there.shape)
        free = free[:, :profiles, asked]

        at, everywhere = np.repeat(np.arange(profiles), len(doublings)), np.tile(doublings, profiles)
        cross = self._covariance(at, everywhere, known.profile, known.doublings)
        inner = self._covariance(known.profile, known.doublings, known.profile, known.doublings)
        gain = cho_solve(cho_factor(inner + (noise**2 + JITTER) * np.eye(len(inner)), lower=True), cross.T)
        mean = ((known.residual / self.scale(known.traits)) @ gain).reshape(free.shape[1:])
        unknown = free - (there @ gain).reshape(free.shape) + noise * rng.standard_normal(free.shape)
        # The scale stays as open as before: that one profile went as predicted says little of the others.
        return mean + SPREAD * unknown * self._scales(draws, rng), mean

    def _scales(self, draws: int, rng: np.random.Generator) -> Floats:
        """Return the LLM's scale in every draw, [draw, 1, 1]."""
        scales = np.sqrt(self.freedom / rng.chisquare(self.freedom, size=(draws, 1, 1)))
        return np.asarray(np.minimum(scales, LARGEST_SCALE))

    def _prior(self, profiles: int, doublings: Floats, draws: int, rng: np.random.Generator) -> Floats:
        """Return smooth residuals of an LLM nobody has measured, [draw, profile, load]."""
        llm, profile = _kernels(self.variances, doublings, doublings)
        free = rng.standard_normal((draws, 1 + profiles, len(doublings)))
        return np.asarray(free[:, :1] @ _root(llm).T + free[:, 1:] @ _root(profile).T)

    def _covariance(self, a: Ints, loads_a: Floats, b: Ints, loads_b: Floats) -> Floats:
        llm, profile = _kernels(self.variances, loads_a, loads_b)
        return np.asarray(llm + (a[:, None] == b[None]) * profile)


def fit_widths(clusters: Sequence[Cluster]) -> tuple[Residuals, Residuals]:
    """Return both accounts of how wide the residuals are: by the cells' traits, and whatever these are."""
    alike = [replace(cluster, traits=cluster.traits[:, :0]) for cluster in clusters]
    return fit_residuals(clusters), fit_residuals(alike)


def fit_residuals(clusters: Sequence[Cluster]) -> Residuals:
    """Return the most probable variances, freedom and widenings, every cluster an LLM of its own."""
    traits = clusters[0].traits.shape[1]
    centre = np.concatenate([np.log([*PRIOR_VARIANCES, PRIOR_FREEDOM]), np.zeros(traits)])
    kernels = [_distances(cluster) for cluster in clusters]
    at_freedom = len(PRIOR_VARIANCES)

    def loss(x: Floats) -> tuple[float, Floats]:
        v, freedom, widening = np.exp(x[:at_freedom]), float(np.exp(x[at_freedom])), x[at_freedom + 1 :]
        value = 0.5 * float((((x - centre) / PRIOR_SPREAD) ** 2).sum())
        slope = (x - centre) / PRIOR_SPREAD**2
        for cluster, parts in zip(clusters, kernels, strict=True):
            n, widths = len(cluster.residual), cluster.traits @ widening
            residual = cluster.residual * np.exp(-widths)
            factor = cho_factor(np.tensordot(v, parts, axes=1), lower=True)
            inverse = cho_solve(factor, np.eye(n))
            weights = inverse @ residual
            surprise = float(residual @ weights)
            ratio = (freedom + n) / (freedom + surprise)
            value += float(np.log(np.diag(factor[0])).sum() + widths.sum())
            value += (freedom + n) / 2 * log1p(surprise / freedom) + n / 2 * log(freedom)
            value += float(gammaln(freedom / 2) - gammaln((freedom + n) / 2))
            unexplained = inverse - ratio * np.outer(weights, weights)
            slope[:at_freedom] += 0.5 * v * np.einsum("kij,ij->k", parts, unexplained)
            of_freedom = digamma(freedom / 2) - digamma((freedom + n) / 2) + n / freedom
            of_freedom += log1p(surprise / freedom) - ratio * surprise / freedom
            slope[at_freedom] += 0.5 * freedom * of_freedom
            slope[at_freedom + 1 :] += (1 - ratio * weights * residual) @ cluster.traits
        return value, slope

    found = minimize(loss, centre, jac=True, method="L-BFGS-B", options={"maxiter": 80})
    *variances, freedom = np.exp(found.x[: at_freedom + 1]).tolist()
    return Residuals(tuple(variances), freedom, tuple(found.x[at_freedom + 1 :].tolist()))


def _distances(cluster: Cluster) -> Floats:
    """Return the covariance's parts [5, n, n], each for a variance of 1."""
    n = len(cluster.residual)
    llm, profile = _like(cluster.doublings, cluster.doublings)
    same = (cluster.profile[:, None] == cluster.profile[None]).astype(float)
    return np.stack([np.ones((n, n)), llm, same, same * profile, np.eye(n)])


def _like(a: Floats, b: Floats) -> tuple[Floats, Floats]:
    apart = (a[:, None] - b[None]) ** 2
    return np.exp(-0.5 * apart / LLM_LENGTH**2), np.exp(-0.5 * apart / PROFILE_LENGTH**2)


def _kernels(variances: Sequence[float], a: Floats, b: Floats) -> tuple[Floats, Floats]:
    """Return what two cells of one LLM share by their loads, and what they share more on one profile."""
    llm, profile = _like(a, b)
    return variances[0] + variances[1] * llm, variances[2] + variances[3] * profile


def _root(covariance: Floats) -> Floats:
    values, vectors = np.linalg.eigh(covariance)
    return np.asarray(vectors * np.sqrt(np.maximum(values, 0.0)))
