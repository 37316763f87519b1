"""The entropy-weighted mean of class probabilities."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from fusion_ensemble_plugin import ClassScoreReducer


class Certain(NamedTuple):
    """The probabilities of some members, each times its certainty, and the sum of their certainties."""

    probabilities: Tensor
    certainty: Tensor


class EntropyWeightedReducer(ClassScoreReducer):
    """The mean of class probabilities in which a member counts by its certainty about this very input.

    With p_i the class probabilities of member i and H their entropy, the certainty is exp(-H(p_i)): 1 for a member that
    is sure of one class, 1/C for one that finds C classes equally likely. The output is
    log (sum_i w_i exp(-H(p_i)) p_i / sum_i w_i exp(-H(p_i))).

    References:
        Oh, Li, Song, Yun, Han: DaWin: Training-free Dynamic Weight Interpolation for Robust Adaptation, ICLR 2025,
        arXiv:2410.03782. There the same certainties weigh the parameters of two models; here, the predictions of any
        number of them.

    Examples:
        >>> import torch
        >>> sure, unsure = torch.tensor([0.0, -9.0]), torch.tensor([0.0, 0.0])
        >>> reducer = EntropyWeightedReducer()
        >>> state = reducer.merge(reducer.lift(sure, 1.0), reducer.lift(unsure, 1.0))
        >>> reducer.lower(state, 2.0).exp()
        tensor([0.8330, 0.1670])
    """

    def lift(self, output: Tensor, weight: float) -> Certain:
        """Weigh one member's probabilities."""
        log_p = self.log_probabilities(output)
        entropy = -(log_p.exp() * log_p.clamp_min(-1e9)).sum(self.class_dim, keepdim=True)  # 0 log 0 is 0
        certainty = weight * (-entropy).exp()
        return Certain(log_p.exp() * certainty, certainty)

    def merge(self, left: Certain, right: Certain) -> Certain:
        """Add both sums."""
        return Certain(left.probabilities + right.probabilities, left.certainty + right.certainty)

    def lower(self, state: Certain, total_weight: float) -> Tensor:
        """Divide by the sum of the certainties."""
        return (state.probabilities / state.certainty).log()
