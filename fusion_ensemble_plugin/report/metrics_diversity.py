"""How the members of an ensemble differ: pure functions of the members' probabilities, (members, samples, classes).

Weights are one number >= 0 a member, in any scale; None stands for equal ones. Entropies are in nats.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fusion_ensemble_plugin.report.metrics import correct


def shares(members: Tensor, weights: Sequence[float] | None = None) -> Tensor:
    """Return the weights as shares that sum to 1, (members,), float64, on the members' device.

    Raises:
        ValueError: If there is not one weight a member, if one is negative, or if none is above 0.
    """
    given = torch.ones(len(members)) if weights is None else torch.tensor(list(weights))
    given = given.double().to(members.device)
    if given.shape != (len(members),) or not (given.min() >= 0 and 0 < given.sum() < torch.inf):
        raise ValueError(f"weights={weights}: one number >= 0 for each of {len(members)} members, not all 0, is needed")
    return given / given.sum()


def pooled(members: Tensor, weights: Sequence[float] | None = None) -> Tensor:
    """Return the weighted mean of the members' probabilities, (samples, classes), in float64."""
    return torch.einsum("m,msc->sc", shares(members, weights), members.double())


def predictive_entropy(probabilities: Tensor) -> Tensor:
    """Return H(p) = -sum_c p_c log p_c of each sample: the total uncertainty, (..., samples).

    Examples:
        >>> predictive_entropy(torch.tensor([[0.5, 0.5], [1.0, 0.0]]))
        tensor([0.6931, 0.0000], dtype=torch.float64)
    """
    surprise: Tensor = torch.special.entr(probabilities.double())
    return surprise.sum(dim=-1)


def mutual_information(members: Tensor, weights: Sequence[float] | None = None) -> Tensor:
    """Return MI = H(mean p) - sum_i w_i H(p_i) of each sample: the uncertainty that comes of the members' differing.

    It is at least 0, for members that agree, and at most the entropy of the weights, for members that are certain of a
    different class each.

    Returns:
        (samples,)

    References:
        Houlsby et al.: Bayesian active learning for classification and preference learning, arXiv:1112.5745, eq. 2; as
        the Jensen-Shannon divergence of several distributions and its bounds: Lin, IEEE Trans. Inf. Theory 37, 1991.

    Examples:
        >>> mutual_information(torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]]))
        tensor([0.6931], dtype=torch.float64)
    """
    within = torch.einsum("m,ms->s", shares(members, weights), predictive_entropy(members))
    return (predictive_entropy(pooled(members, weights)) - within).clamp_min(0)  # rounding gives -1e-16


def disagreement(members: Tensor) -> Tensor:
    """Return the share of samples on which two members predict different classes, for every pair, (members, members).

    References:
        Kuncheva and Whitaker: Measures of diversity in classifier ensembles, Machine Learning 51, 2003, of predictions
        instead of right and wrong ones.

    Examples:
        >>> disagreement(torch.tensor([[[0.9, 0.1], [0.2, 0.8]], [[0.9, 0.1], [0.7, 0.3]]]))
        tensor([[0.0000, 0.5000],
                [0.5000, 0.0000]], dtype=torch.float64)
    """
    predictions = members.argmax(dim=-1)
    rows = [(predictions != each).double().mean(dim=-1) for each in predictions]  # a row at a time: less memory
    return torch.stack(rows)


def oracle_accuracy(members: Tensor, labels: Tensor) -> Tensor:
    """Return the share of samples that at least one member gets right: what a perfect choice among members would reach.

    References:
        Kuncheva: Combining pattern classifiers, Wiley 2004, section 4.
    """
    return correct(members, labels).any(dim=0).double().mean()
