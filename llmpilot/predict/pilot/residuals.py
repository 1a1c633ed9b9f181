"""How far predictions stray from the truth, and together where: a Gaussian process over one LLM's residuals.

Residuals are measured minus predicted logs, of predictions made without the LLM in question. What an LLM's
cells share, and what the loads of one profile share, is found by the most probable variances. For an LLM that
nobody has measured this is the spread of what may be true; its measured cells narrow it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve
from scipy.optimize import minimize

from llmpilot.predict.prediction import Floats

Ints = NDArray[np.int64]

PRIOR_VARIANCES = (0.04, 0.02, 0.02, 0.01, 0.003)
"""Of what an LLM's cells share: everywhere, and at like loads; of what the loads of one of its profiles
share: all, and like ones; and of a single cell."""
PRIOR_SPREAD = 1.0
"""How sure these are (log units)."""
LLM_LENGTH, PROFILE_LENGTH = 2.0, 1.0
"""Loads are alike where they differ by few doublings."""
JITTER = 1e-8


@dataclass(frozen=True)
class Cluster:
    """One LLM's cells: `profile` [n] says which belong to one profile, `doublings` [n] is log2 of the users,
    `residual` [n] what was found there."""

    profile: Ints
    doublings: Floats
    residual: Floats


@dataclass(frozen=True)
class Residuals:
    """The variances found, in the order of PRIOR_VARIANCES."""

    variances: tuple[float, ...]

    def draw(
        self,
        profiles: int,
        doublings: Floats,
        draws: int,
        rng: np.random.Generator,
        known: Cluster | None = None,
    ) -> tuple[Floats, Floats]:
        """Return joint residuals [draw, profile, load], and their mean [profile, load].

        A cell's own noise is in the draws, for what one measures has it. `known` are measured cells of this
        LLM; a profile beyond the last is one that is not asked for. Prior draws are corrected by what was
        measured (Matheron's rule), so that no large covariance is factorized.
        """
        noise = self.variances[4]
        if known is None or not len(known.residual):
            smooth = self._prior(profiles, doublings, draws, rng)
            return smooth + noise**0.5 * rng.standard_normal(smooth.shape), np.zeros(smooth.shape[1:])
        loads = np.union1d(doublings, known.doublings)
        asked = np.searchsorted(loads, doublings)
        smooth = self._prior(max(profiles, 1 + int(known.profile.max())), loads, draws, rng)
        there = smooth[:, known.profile, np.searchsorted(loads, known.doublings)]
        there = there + noise**0.5 * rng.standard_normal(there.shape)
        smooth = smooth[:, :profiles, asked]

        at, everywhere = np.repeat(np.arange(profiles), len(doublings)), np.tile(doublings, profiles)
        cross = self._covariance(at, everywhere, known.profile, known.doublings)
        inner = self._covariance(known.profile, known.doublings, known.profile, known.doublings)
        gain = cho_solve(cho_factor(inner + (noise + JITTER) * np.eye(len(inner)), lower=True), cross.T)
        corrected = smooth + ((known.residual - there) @ gain).reshape(smooth.shape)
        mean = (known.residual @ gain).reshape(smooth.shape[1:])
        return corrected + noise**0.5 * rng.standard_normal(smooth.shape), mean

    def _prior(self, profiles: int, doublings: Floats, draws: int, rng: np.random.Generator) -> Floats:
        """Return smooth residuals of an LLM nobody has measured, [draw, profile, load]."""
        llm, profile = _kernels(self.variances, doublings, doublings)
        free = rng.standard_normal((draws, 1 + profiles, len(doublings)))
        return np.asarray(free[:, :1] @ _root(llm).T + free[:, 1:] @ _root(profile).T)

    def _covariance(self, a: Ints, loads_a: Floats, b: Ints, loads_b: Floats) -> Floats:
        llm, profile = _kernels(self.variances, loads_a, loads_b)
        return np.asarray(llm + (a[:, None] == b[None]) * profile)


def fit_residuals(clusters: Sequence[Cluster]) -> Residuals:
    """Return the most probable variances, every cluster an LLM of its own."""
    centre = np.log(PRIOR_VARIANCES)
    kernels = [_distances(cluster) for cluster in clusters]

    def loss(x: Floats) -> tuple[float, Floats]:
        v = np.exp(x)
        value = 0.5 * float((((x - centre) / PRIOR_SPREAD) ** 2).sum())
        slope = (x - centre) / PRIOR_SPREAD**2
        for cluster, parts in zip(clusters, kernels, strict=True):
            covariance = np.tensordot(v, parts, axes=1)
            factor = cho_factor(covariance, lower=True)
            inverse = cho_solve(factor, np.eye(len(covariance)))
            weights = inverse @ cluster.residual
            value += 0.5 * float(cluster.residual @ weights) + float(np.log(np.diag(factor[0])).sum())
            unexplained = inverse - np.outer(weights, weights)
            slope = slope + 0.5 * v * np.einsum("kij,ij->k", parts, unexplained)
        return value, slope

    found = minimize(loss, centre, jac=True, method="L-BFGS-B", options={"maxiter": 60})
    return Residuals(tuple(np.exp(found.x).tolist()))


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
