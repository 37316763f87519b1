"""The entropy-weighted mean of class probabilities."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fusion_ensemble_plugin import ClassScoreReducer


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
        >>> sure, unsure = torch.tensor([0.0, -9.0]), torch.tensor([0.0, 0.0])
        >>> reducer = EntropyWeightedReducer()
        >>> state = reducer.merge(reducer.lift(sure, 1.0), reducer.lift(unsure, 1.0))
        >>> reducer.lower(state, 2.0).exp()
        tensor([0.8331, 0.1669])
    """

    def lift(self, output: Tensor, weight: float) -> Tensor:
        """Return log (w exp(-H) p) of one member."""
        log_p = self.log_probabilities(output)
        entropy = -(log_p.exp() * log_p.clamp_min(-1e9)).sum(self.class_dim, keepdim=True)  # 0 log 0 is 0
        return log_p - entropy + math.log(weight)

    def merge(self, left: Tensor, right: Tensor) -> Tensor:
        """Return log (exp left + exp right)."""
        return torch.logaddexp(left, right)

    def lower(self, state: Tensor, total_weight: float) -> Tensor:
        """Divide by the sum over the classes, which is the sum of the certainties."""
        return state.log_softmax(self.class_dim)
