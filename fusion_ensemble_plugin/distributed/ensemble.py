"""An ensemble whose members are spread over the ranks of a team."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import Any, NoReturn

import torch
from torch import nn

from fusion_ensemble_plugin.absent import Absent
from fusion_ensemble_plugin.distributed.link import Link
from fusion_ensemble_plugin.distributed.members import Counts, elsewhere
from fusion_ensemble_plugin.distributed.shards import NotByRows, ShardFold, join
from fusion_ensemble_plugin.ensemble import ParallelEnsemble
from fusion_ensemble_plugin.groups import group_members
from fusion_ensemble_plugin.guard import Inputs
from fusion_ensemble_plugin.members import member_device
from fusion_ensemble_plugin.notes import add_note
from fusion_ensemble_plugin.outputs import Fold
from fusion_ensemble_plugin.runner import MemberCall
from fusion_ensemble_plugin.transfer import device_of, move, torch_device


class MemberParallel(ParallelEnsemble):
    """What is added to an ensemble of any class whose members are spread over ranks; made by `spread`.

    Every rank of the team calls it the same number of times, each with its own batch, and gets what all members make of
    that batch. A rank that has no batches left calls `join`. Outputs carry no gradient to the inputs.
    """

    _link: Link
    _separately = False

    def run_members(self, call: MemberCall, inputs: Inputs, new_fold: Callable[[], Fold] | None = None) -> Any:
        """Run a call on every member, each on the rank that holds it, and reduce what they return.

        Raises:
            RankError: If another rank failed, or does not answer; the message names it and its members.
        """
        new_fold = new_fold or partial(Fold, self.reducer, self.output_keys)
        finished = any(isinstance(given, _NoBatch) for given in inputs[0])
        shards = self._link.gather(inputs, finished)
        if not shards:
            raise _AllHaveFinished
        folds = self._folded_here(call, self._brought(shards, inputs), new_fold)
        place = self._link.layout.place
        found = self._link.trade({to: fold.packed() for to, fold in folds.items() if to != place and fold.names})
        if finished:
            raise _Served
        parts = {other: new_fold().unpack(packed) for other, packed in found.items()}
        parts[place] = folds[place]
        groups = group_members(self.model_list, self.member_weights)
        return self._reduce([parts[other] for other in sorted(parts)], new_fold(), self._target(inputs, groups))

    def join(self) -> None:
        """Work for the ranks that still have batches, until all ranks of the team have called this.

        FusionBench's task pools need no such call: Fabric gives each rank the same number of batches.
        """
        while True:
            try:
                self(_NoBatch())
            except _Served:
                continue
            except _AllHaveFinished:
                return

    def _folded_here(
        self, call: MemberCall, shards: Mapping[int, Inputs], new_fold: Callable[[], Fold]
    ) -> dict[int, Fold]:
        """Run the members of this rank on all ranks' batches.

        Returns:
            Place in the team to the fold of what they return for that rank's batch.
        """
        folds = {place: new_fold() for place in shards}
        if not group_members(self.model_list, self.member_weights):
            return folds
        try:
            for batch in join(dict(shards), self._separately):
                folds.update(super().run_members(call, batch.inputs, partial(ShardFold, new_fold, batch.rows)))
        except NotByRows:
            self._separately = True
            return self._folded_here(call, shards, new_fold)
        except Exception as error:
            add_note(error, f"on rank {self._link.layout.rank}")
            self._link.fail(error)
            raise
        return folds

    def _brought(self, shards: dict[int, Inputs], inputs: Inputs) -> dict[int, Inputs]:
        """Move what came from other ranks to the device of this rank's own inputs."""
        device = device_of(inputs)
        return shards if device is None else {place: move(shard, device, "input") for place, shard in shards.items()}

    @property
    def _first(self) -> tuple[int, nn.Module]:
        """The first member that this rank holds, with its index."""
        return next((index, member) for index, member in enumerate(self.model_list) if not isinstance(member, Absent))

    @property
    def device(self) -> torch.device:
        """The device on which the first member of this rank computes."""
        index, member = self._first
        if self.placement is not None:
            return torch_device(self.placement.devices[index])
        return member_device(member) or torch.device("cpu")

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the first floating parameter on this rank; torch's default if there is none."""
        floating = (p.dtype for p in self._first[1].parameters() if p.is_floating_point())
        return next(floating, torch.get_default_dtype())

    def can_generate(self) -> bool:
        """Say no: decoding needs every member at each step."""
        return False

    def generate(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Raise ``NotImplementedError``."""
        raise NotImplementedError(
            "generate does not work with member_parallel yet: run it with all members in one process "
            "(member_parallel=false; device_map and offload spread them there)"
        )

    def close(self) -> None:
        """End the workers and the connection to the other ranks; it can't be called again."""
        super().close()
        self._link.close()

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Copy an ensemble although its class has no module; a pickle is refused by the link."""
        return (_blank, (type(self).__bases__[1],), *super().__reduce_ex__(protocol)[2:])


def spread(ensemble: ParallelEnsemble, link: Link, counts: Mapping[int, Counts]) -> ParallelEnsemble:
    """Make an ensemble that was built with `Absent` members run them where they are.

    Args:
        ensemble: Of any class; returned, with its class changed to one that is also `MemberParallel`.
        link: The connection to the ranks that hold them.
        counts: Rank to the numbers of its parameters.
    """
    ensemble.__class__ = _member_parallel(type(ensemble))  # type: ignore[arg-type]  # classes are hashable
    ensemble._link = link  # type: ignore[assignment]
    ensemble.elsewhere = elsewhere(counts, link.layout)
    names = [name for name, _ in (*ensemble.named_parameters(), *ensemble.named_buffers())]
    # DistributedDataParallel, in which Fabric wraps a model, would overwrite each rank's members with those of rank 0
    ensemble._ddp_params_and_buffers_to_ignore = names  # type: ignore[assignment]
    return ensemble


@cache
def _member_parallel(cls: type[ParallelEnsemble]) -> type[ParallelEnsemble]:
    return type(f"MemberParallel{cls.__name__}", (MemberParallel, cls), {"__module__": __name__})


def _blank(cls: type[ParallelEnsemble]) -> ParallelEnsemble:
    kind = _member_parallel(cls)  # type: ignore[arg-type]
    return kind.__new__(kind)


class _Served(Exception):
    """A rank without a batch has done its part of one exchange."""


class _AllHaveFinished(Exception):
    """No rank has a batch left."""


class _NoBatch:
    """What a rank that has finished gives in the place of a batch."""
