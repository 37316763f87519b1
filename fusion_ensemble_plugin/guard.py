"""Members that write into their input: neither the next member nor the caller may see it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor

from fusion_ensemble_plugin.tree import flatten, unflatten

Inputs = tuple[tuple[Any, ...], dict[str, Any]]


class SharedInputs:
    """Inputs that several members share, with the tensors whose version counters tell whether one wrote to them."""

    def __init__(self, inputs: Inputs) -> None:
        self._leaves, self._structure = flatten(inputs)
        self._counted = [leaf for leaf in self._leaves if isinstance(leaf, Tensor) and not leaf.is_inference()]

    @property
    def inputs(self) -> Inputs:
        """The inputs, in containers made anew: a member may take a value out of a dict, or put one in."""
        return self._with(lambda leaf: leaf)

    def versions(self) -> list[int]:
        """Return how often each tensor was written to; inference tensors do not count."""
        return [tensor._version for tensor in self._counted]

    def counted_apart(self) -> SharedInputs:
        """Return the same memory with version counters that count what is written through these tensors only.

        Lanes run at the same time on one tensor; by its one counter, each would seem to have written what any one did.
        Tensors that require gradients keep theirs.
        """
        return SharedInputs(self._with(_counted_apart))

    def copy(self) -> SharedInputs:
        """Return a copy of all tensors, in the same containers."""
        return SharedInputs(self._with(_copied))

    def _with(self, function: Callable[[Any], Any]) -> Inputs:
        inputs: Inputs = unflatten(self._structure, map(function, self._leaves))
        return inputs


class InputGuard:
    """Gives a member a copy of its input until it has shown that it leaves it alone, and for good if it does not.

    The first call always gets a copy, and the tensors' version counters tell whether it was written to. After that the
    member shares the input with the others; should it write later all the same (in a branch not taken before), the call
    fails and names it, and from then on it gets copies too.
    """

    def __init__(self) -> None:
        self._shares: bool | None = None

    def call(self, member: Callable[..., Any], name: str, shared: SharedInputs) -> Any:
        """Call a member.

        Raises:
            RuntimeError: If the member wrote into an input that it had left alone before.
        """
        given = shared if self._shares else shared.copy()
        before = given.versions()
        args, kwargs = given.inputs
        output = member(*args, **kwargs)
        written = given.versions() != before
        if written and self._shares:
            self._shares = False
            raise RuntimeError(
                f"member {name!r} wrote into its input in place, which other members and the caller share; it had not "
                "done so before. It gets a copy of its own from the next call on."
            )
        if self._shares is None:
            self._shares = not written
        return output


def _counted_apart(leaf: Any) -> Any:
    if not isinstance(leaf, Tensor) or leaf.requires_grad or leaf.is_inference() or is_functorch_wrapped_tensor(leaf):
        return leaf
    return leaf.data


def _copied(leaf: Any) -> Any:
    if not isinstance(leaf, Tensor):
        return leaf
    with torch.inference_mode(False):  # an inference tensor counts no versions; its copy made here does
        return leaf.clone()
