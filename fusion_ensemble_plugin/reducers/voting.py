"""Majority vote."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fusion_ensemble_plugin.reducer import merge_into
from fusion_ensemble_plugin.reducers.class_scores import ClassScoreReducer

SMOOTHING = 1e-4
"""The share of the mean probability in the frequencies: a class that nobody votes for keeps a finite logarithm."""

LEAD = 1 / 32
"""By how much the winner's frequency leads the next one's at least, relative to it: enough to last in bfloat16."""

TIE = 1e-6
"""Votes closer than this share of all votes are a tie: sums of weights such as 0.1 + 0.2 and 0.3 differ in rounding."""


class Ballots(NamedTuple):
    """The weighted votes of some members.

    Attributes:
        votes: For each class, the weight of the members whose highest score it has.
        probabilities: For each class, the weighted sum of the members' probabilities.
    """

    votes: Tensor
    probabilities: Tensor


class MajorityVoteReducer(ClassScoreReducer):
    """The log-frequencies of the members' votes: each votes, with its weight, for the class of its highest score.

    The output is log f with f = (1 - s) votes / sum_i w_i + s p, where p is the members' mean probability and
    s = `SMOOTHING`, so that cross-entropy stays finite for a class without votes. The class with the most votes wins,
    and of several the one with the highest mean probability: it gets at least ``1 + LEAD`` times the frequency of any
    other (and f is normalised again), so that ``argmax`` is right in ties too, also after a cast to half precision.

    Votes have no gradient; the part of the mean probability has.

    Args:
        class_dim: The dimension of the classes.
        temperature: A number above 0 by which each member's logits are divided, which matters for ties alone.
        score_keys: Output fields that hold class scores; None for ``logits``, or the tensor itself.

    Raises:
        ValueError: If an option is wrong.

    Examples:
        >>> vote = MajorityVoteReducer()
        >>> scores = ([2.0, 1.0, 0.0], [2.0, 1.0, 0.0], [0.0, 1.0, 9.0])
        >>> first, second, third = (vote.lift(torch.tensor(member), 1.0) for member in scores)
        >>> vote.lower(vote.merge(vote.merge(first, second), third), 3.0).exp().round(decimals=3)
        tensor([0.6670, 0.0000, 0.3330])
    """

    def lift(self, output: Tensor, weight: float) -> Ballots:
        """Return one member's vote and probabilities, times its weight."""
        probabilities = self.log_probabilities(output).exp()
        choice = output.argmax(self.class_dim, keepdim=True)
        votes = torch.zeros_like(output).scatter_(self.class_dim, choice, weight)
        return Ballots(votes, probabilities if weight == 1 else merge_into(torch.mul, probabilities, weight))

    def merge(self, left: Ballots, right: Ballots) -> Ballots:
        """Add both, into ``left``."""
        return Ballots(*(merge_into(torch.add, mine, theirs) for mine, theirs in zip(left, right)))

    def lower(self, state: Ballots, total_weight: float) -> Tensor:
        """Return the logarithm of the frequencies."""
        shares, probabilities = state.votes / total_weight, state.probabilities / total_weight
        wins = self._winner(shares, probabilities)
        frequencies = (1 - SMOOTHING) * shares + SMOOTHING * probabilities
        next_best = frequencies.masked_fill(wins, 0.0).amax(self.class_dim, keepdim=True)
        led = torch.where(wins, torch.maximum(frequencies, (1 + LEAD) * next_best), frequencies)
        return (led / led.sum(self.class_dim, keepdim=True)).clamp_min(torch.finfo(led.dtype).tiny).log()

    def _winner(self, shares: Tensor, probabilities: Tensor) -> Tensor:
        """Mark the one class that wins."""
        tied = shares >= shares.amax(self.class_dim, keepdim=True) - TIE
        best = probabilities.masked_fill(~tied, -1.0).argmax(self.class_dim, keepdim=True)
        return torch.zeros_like(tied).scatter_(self.class_dim, best, True)
