"""Members of one architecture on one device, run as one: their weights stacked, their forward vectorised.

It saves the launch of N small operations for one large one. On a CPU it pays for tiny members only: what one operation
fills the cores with already gets slower.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from fusion_ensemble_plugin.alike import difference
from fusion_ensemble_plugin.tree import flatten, unflatten
from fusion_ensemble_plugin.vmap_autocast import vmap_autocast

_TENSOR = object()


class Stack:
    """Runs several modules as one by ``torch.func.vmap``.

    The modules' parameters and buffers become views of the stacked tensors: they are moved, not copied, and whatever
    writes to the modules in place writes to the stack. With gradients enabled, parameters that require them are stacked
    anew in each forward, so that each module's own get their gradients.

    Args:
        modules: Modules alike in all but their weights, on one device.
        names: What to call them in errors.

    Raises:
        ValueError: If they are not alike; says which differ in what.

    Examples:
        >>> stack = Stack([nn.Linear(2, 2), nn.Linear(2, 2)], ["a", "b"])
        >>> with torch.no_grad():
        ...     stack(torch.ones(5, 2)).shape
        torch.Size([2, 5, 2])
    """

    def __init__(self, modules: Sequence[nn.Module], names: Sequence[str]) -> None:
        check_alike(modules, names)
        # a CPU has no vectorised attention kernel: torch loops over the modules there, and says so at every layer
        warnings.filterwarnings("ignore", message="There is a performance drop because we have not yet implemented")
        self._modules = list(modules)
        with torch.inference_mode(False), torch.no_grad():
            self._stacked = {name: _stacked(tensors) for name, tensors in self._tensors()}
        self._parts = [part for module in modules for part in module.modules()]
        self._held = list(_held(self._parts))
        tensors = [value for _, _, value in self._held if isinstance(value, Tensor)]
        self._addresses = [(tensor.data_ptr, tensor.data_ptr()) for tensor in tensors]
        self._modes = _modes(self._parts)
        self._device_type = next((tensor.device.type for tensor in self._stacked.values()), "cpu")

    @property
    def is_current(self) -> bool:
        """Whether the modules still are what was stacked.

        They are not after one got other tensors (by ``half()`` or ``load_state_dict(assign=True)``, say), another
        submodule, another training mode, or a hook.
        """
        return (
            self._modes == _modes(self._parts)
            and all(place.get(key) is value for place, key, value in self._held)
            and all(address() == stacked for address, stacked in self._addresses)
        )

    def dissolve(self) -> None:
        """Give each module memory of its own again; the stack is of no use after."""
        with torch.inference_mode(False), torch.no_grad():
            for _, tensors in self._tensors():
                for tensor in tensors:
                    tensor.data = tensor.detach().clone()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run all modules on one input.

        Returns:
            One output in their type, its tensors stacked: ``(modules, *shape)``.
        """
        stacked = self._differentiable() if torch.is_grad_enabled() else self._stacked
        fixed: list[Any] = []

        def one(weights: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
            leaves, structure = flatten(functional_call(self._modules[0], dict(weights), args, kwargs))
            fixed[:] = [structure, [_TENSOR if isinstance(leaf, Tensor) else leaf for leaf in leaves]]
            return tuple(leaf for leaf in leaves if isinstance(leaf, Tensor))

        with vmap_autocast(self._device_type):
            outputs = vmap(one, randomness="different")(stacked)
        structure, others = fixed
        tensors = iter(outputs)
        # the vectorised function ran once for all modules, so what is no tensor is the same for all
        return unflatten(structure, [next(tensors) if other is _TENSOR else other for other in others])

    def _differentiable(self) -> dict[str, Tensor]:
        """Stack the parameters anew; buffers must stay in the stack, which the modules write to in training."""
        return {
            name: torch.stack(tensors) if any(tensor.requires_grad for tensor in tensors) else self._stacked[name]
            for name, tensors in self._tensors()
        }

    def _tensors(self) -> Iterator[tuple[str, list[Tensor]]]:
        """Yield each parameter's and buffer's name and its tensor in every module; tied ones once."""
        named = [dict(chain(m.named_parameters(), m.named_buffers())) for m in self._modules]
        for name in named[0]:
            yield name, [tensors[name] for tensors in named]


def check_alike(modules: Sequence[nn.Module], names: Sequence[str]) -> None:
    """Check that modules can run as one.

    Raises:
        ValueError: If not; says which differ in what.
    """
    found = [(name, difference(modules[0], module)) for name, module in zip(names, modules)]
    problems = [f"{names[0]!r} and {name!r} differ: {why}" for name, why in found if why]
    problems += _shared(modules, names)
    if problems:
        raise ValueError(f"executor=stacked needs members that are alike; {'; '.join(problems)}")


def _shared(modules: Sequence[nn.Module], names: Sequence[str]) -> list[str]:
    """Say which modules share a tensor: it can lie in one place of a stack only."""
    owners: dict[int, str] = {}
    problems: dict[str, str] = {}
    for owner, module in zip(names, modules):
        for name, tensor in chain(module.named_parameters(), module.named_buffers()):
            first = owners.setdefault(id(tensor), owner)
            if first != owner:
                problems.setdefault(owner, f"{first!r} and {owner!r} share {name}")
    return list(problems.values())


def _modes(parts: Sequence[nn.Module]) -> list[tuple[bool, int]]:
    return [(part.training, len(part._forward_hooks) + len(part._forward_pre_hooks)) for part in parts]


def _held(parts: Sequence[nn.Module]) -> Iterator[tuple[Mapping[str, Any], str, Any]]:
    """Yield each submodule, parameter and buffer, with the mapping that holds it and its key there."""
    for part in parts:
        for place in (part._modules, part._parameters, part._buffers):
            yield from ((place, key, value) for key, value in place.items())


def _stacked(tensors: Sequence[Tensor]) -> Tensor:
    """Stack tensors and make each a view of the stack."""
    stack = torch.stack(list(tensors))
    for tensor, view in zip(tensors, stack):
        tensor.data = view
    return stack
