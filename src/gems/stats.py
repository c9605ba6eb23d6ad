"""Confidence intervals over prompts by the percentile bootstrap, for rates and paired differences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

__all__ = ["bootstrap_interval", "ratio_interval"]

RESAMPLES: Final = 10_000
"""Number of bootstrap samples."""
_PORTION: Final = 100
"""Bootstrap samples drawn at a time: all at once would take gigabytes for a thousand prompts."""


def _resampled_means(values: NDArray[np.float64], seed: int) -> NDArray[np.float64]:
    """Means of bootstrap samples: (RESAMPLES,) for values (n,), (RESAMPLES, k) for values (n, k)."""
    rng, n = np.random.default_rng(seed), len(values)
    portions = range(RESAMPLES // _PORTION)
    return np.concatenate([values[rng.integers(0, n, size=(_PORTION, n))].mean(axis=1) for _ in portions])


def bootstrap_interval(
    values: Sequence[float] | NDArray[np.float64], seed: int = 0, *, level: float = 0.95
) -> list[float]:
    """Percentile bootstrap interval of a mean over prompts, such as a rate or a paired difference (Efron, 1979)."""
    means = _resampled_means(np.asarray(values, dtype=np.float64), seed)
    tail = 50 * (1 - level)
    return [round(float(bound), 4) for bound in np.percentile(means, [tail, 100 - tail])]


def ratio_interval(above: Sequence[float], below: Sequence[float], seed: int = 0) -> list[float]:
    """95% interval of mean(above) / mean(below); both hold one value per prompt, and are resampled together."""
    means = _resampled_means(np.stack([above, below], axis=1).astype(np.float64), seed)
    ratios = means[:, 0] / np.maximum(means[:, 1], 1e-12)
    return [round(float(bound), 4) for bound in np.percentile(ratios, [2.5, 97.5])]
