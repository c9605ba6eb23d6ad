"""Intervals over prompts: the percentile bootstrap, for rates and for paired differences."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["bootstrap_interval", "ratio_interval"]

RESAMPLES = 10_000


def _resampled_means(values: NDArray[np.float64], seed: int) -> NDArray[np.float64]:
    """Means of bootstrap samples: (RESAMPLES,) for values (n,), (RESAMPLES, k) for values (n, k)."""
    rng, n = np.random.default_rng(seed), len(values)
    # In portions, so that a thousand prompts take megabytes rather than gigabytes.
    return np.concatenate([values[rng.integers(0, n, size=(100, n))].mean(axis=1) for _ in range(RESAMPLES // 100)])


def bootstrap_interval(
    values: Sequence[float] | NDArray[np.float64], seed: int = 0, *, level: float = 0.95
) -> list[float]:
    """Percentile bootstrap interval of a mean over prompts: of a rate, or of paired differences (Efron, 1979)."""
    means = _resampled_means(np.asarray(values, dtype=np.float64), seed)
    tail = 50 * (1 - level)
    return [round(float(bound), 4) for bound in np.percentile(means, [tail, 100 - tail])]


def ratio_interval(above: Sequence[float], below: Sequence[float], seed: int = 0) -> list[float]:
    """95% interval of mean(above) / mean(below) over the same prompts; both are drawn together."""
    means = _resampled_means(np.stack([above, below], axis=1).astype(np.float64), seed)
    ratios = means[:, 0] / np.maximum(means[:, 1], 1e-12)
    return [round(float(bound), 4) for bound in np.percentile(ratios, [2.5, 97.5])]
