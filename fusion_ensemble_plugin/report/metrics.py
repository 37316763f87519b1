"""How good class probabilities are, and how honest: pure functions of probabilities and labels.

Probabilities are ``(..., samples, classes)``, and each function's result keeps the leading dimensions, so that one call
serves a model, or all members at once. Everything is computed in float64, on the device of the probabilities.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

BINS = 15
"""Bins of confidence that a calibration error has if nobody says otherwise, as in arXiv:1706.04599."""

SMALLEST = torch.finfo(torch.float64).tiny
"""What a probability of 0 counts as in a logarithm, so that one impossible label costs 708 nats and not infinity."""


def check(probabilities: Tensor, labels: Tensor) -> Tensor:
    """Return the probabilities in float64.

    Args:
        probabilities: (..., samples, classes).
        labels: The true classes, (samples,).

    Raises:
        ValueError: If shapes don't fit, there are no samples, a label is no class, or rows are no probabilities.
    """
    shape = tuple(probabilities.shape)
    if labels.dim() != 1 or len(shape) < 2 or shape[-2] != len(labels) or 0 in shape:
        raise ValueError(f"probabilities {shape} and labels {tuple(labels.shape)}: (..., samples, classes) is needed")
    if labels.min() < 0 or labels.max() >= shape[-1]:
        raise ValueError(f"labels from {labels.min()} to {labels.max()}: there are {shape[-1]} classes")
    exact = probabilities.detach().double()
    if not (exact.min() >= 0 and (exact.sum(dim=-1) - 1).abs().max() <= 1e-3):  # half precision sums to 1 that well
        raise ValueError("rows of probabilities must be >= 0 and sum to 1; are these logits?")
    return exact


def correct(probabilities: Tensor, labels: Tensor) -> Tensor:
    """Say which samples get their label as the most probable class; of equal ones, the first counts.

    Returns:
        (..., samples), bool.
    """
    return check(probabilities, labels).argmax(dim=-1) == labels.to(probabilities.device)


def accuracy(probabilities: Tensor, labels: Tensor) -> Tensor:
    """Return the share of samples whose most probable class is their label, (...).

    Examples:
        >>> accuracy(torch.tensor([[0.9, 0.1], [0.6, 0.4]]), torch.tensor([0, 1]))
        tensor(0.5000, dtype=torch.float64)
    """
    return correct(probabilities, labels).double().mean(dim=-1)


def negative_log_likelihood(probabilities: Tensor, labels: Tensor) -> Tensor:
    """Return the mean of -log p(label), in nats, (...): the cross-entropy of the logits that the probabilities are of.

    Examples:
        >>> negative_log_likelihood(torch.tensor([[0.5, 0.5]]), torch.tensor([0]))
        tensor(0.6931, dtype=torch.float64)
    """
    exact = check(probabilities, labels)
    of_label = exact.gather(-1, labels.to(exact.device).expand(exact.shape[:-1])[..., None])
    return -of_label.squeeze(-1).clamp_min(SMALLEST).log().mean(dim=-1)


def brier_score(probabilities: Tensor, labels: Tensor) -> Tensor:
    """Return the mean of sum_c (p_c - [c is the label])^2, from 0 to 2, (...).

    References:
        Brier: Verification of forecasts expressed in terms of probability, Monthly Weather Review 78, 1950; its sum
        runs over all classes, so that with two classes it is twice the one-sided score.

    Examples:
        >>> brier_score(torch.tensor([[0.8, 0.2]]), torch.tensor([0]))
        tensor(0.0800, dtype=torch.float64)
    """
    exact = check(probabilities, labels)
    return (exact - one_hot(labels, exact)).square().sum(dim=-1).mean(dim=-1)


def one_hot(labels: Tensor, like: Tensor) -> Tensor:
    """Return (samples, classes): 1 at the label, 0 elsewhere, with the classes, dtype and device of ``like``."""
    return F.one_hot(labels.to(like.device).long(), like.shape[-1]).to(like.dtype)


class Reliability(NamedTuple):
    """What a model's confidence is worth, by bins of equal width.

    Attributes:
        samples: How many have their confidence in the bin, (bins,).
        confidence: Their mean confidence; NaN in an empty bin, (bins,).
        accuracy: The share of them that is right; NaN in an empty bin, (bins,).
    """

    samples: Tensor
    confidence: Tensor
    accuracy: Tensor

    @property
    def error(self) -> Tensor:
        """The expected calibration error in the L1 norm, sum_b n_b/n |accuracy_b - confidence_b|."""
        gaps = (self.accuracy - self.confidence).abs().nan_to_num()
        return (gaps * self.samples).sum() / self.samples.sum()


def reliability(probabilities: Tensor, labels: Tensor, bins: int = BINS) -> Reliability:
    """Sort samples into bins by their confidence, the probability of the most probable class.

    Args:
        probabilities: Of one model, (samples, classes).
        labels: The true classes, (samples,).
        bins: Number of bins (0, 1/bins], ..., (1 - 1/bins, 1], of equal width.

    References:
        Guo et al.: On calibration of modern neural networks, arXiv:1706.04599, section 2.
    """
    confidence, _ = check(probabilities, labels).max(dim=-1)
    index = (confidence * bins).ceil().long().sub(1).clamp(0, bins - 1)
    right = correct(probabilities, labels).double()
    count, sums, hits = (
        torch.zeros(bins, dtype=torch.float64, device=index.device).index_add(0, index, values)
        for values in (torch.ones_like(confidence), confidence, right)
    )
    return Reliability(count, sums / count, hits / count)


def calibration_error(probabilities: Tensor, labels: Tensor, bins: int = BINS) -> Tensor:
    """Return the expected calibration error (ECE): of the most probable class, bins of equal width, L1 norm, (...).

    Examples:
        >>> calibration_error(torch.tensor([[0.9, 0.1], [0.9, 0.1]]), torch.tensor([0, 1]))
        tensor(0.4000, dtype=torch.float64)
    """
    flat = probabilities.reshape(-1, *probabilities.shape[-2:])
    errors = [reliability(each, labels, bins).error for each in flat]
    return torch.stack(errors).reshape(probabilities.shape[:-2])
