"""The mean of class probabilities, calibrated after it is taken."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from fusion_ensemble_plugin.reducers.probability import ProbabilityMeanReducer


class CalibratedMeanReducer(ProbabilityMeanReducer):
    """The mean of the members' class probabilities, made sharper or softer by one temperature: log softmax(log p / T).

    A mean of probabilities is less confident than its members; members that were calibrated one by one give an ensemble
    that is not, so the temperature comes after pooling. It never changes which class is the most probable.

    Args:
        pooled_temperature: T, a number above 0: below 1 sharper, above 1 softer.
        class_dim: As in `ProbabilityMeanReducer`.
        temperature: As in `ProbabilityMeanReducer`: of each member, before pooling.
        score_keys: As in `ProbabilityMeanReducer`.

    Raises:
        ValueError: If an option is wrong.

    References:
        Rahaman and Thiery: Uncertainty quantification and deep ensembles, arXiv:2007.08792, section 4.

    Examples:
        >>> import torch
        >>> pool = CalibratedMeanReducer(pooled_temperature=0.5)
        >>> left, right = (pool.lift(torch.tensor(p).log(), 1.0) for p in ([0.9, 0.1], [0.5, 0.5]))
        >>> pool.lower(pool.merge(left, right), 2.0).exp()
        tensor([0.8448, 0.1552])
    """

    def __init__(
        self, pooled_temperature: float = 1.0, class_dim: int = -1, temperature: float = 1.0, score_keys: Any = None
    ) -> None:
        super().__init__(class_dim, temperature, score_keys)
        number = isinstance(pooled_temperature, (int, float)) and not isinstance(pooled_temperature, bool)
        if not (number and 0 < pooled_temperature < math.inf):
            raise ValueError(f"pooled_temperature={pooled_temperature!r}: a number above 0 is needed")
        self.pooled_temperature = float(pooled_temperature)

    def lower(self, state: Tensor, total_weight: float) -> Tensor:
        """Divide by the total weight, then by the temperature, and normalise."""
        pooled = super().lower(state, total_weight)
        if self.pooled_temperature == 1:
            return pooled
        return (pooled / self.pooled_temperature).log_softmax(self.class_dim)
