"""Which worker runs which members."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from fusion_ensemble_plugin.absent import Absent
from fusion_ensemble_plugin.members import Members, member_device
from fusion_ensemble_plugin.transfer import torch_device


class Group(NamedTuple):
    """The members of one worker.

    Attributes:
        worker: The worker's name: a placement's device, such as ``cuda:0`` or the lane ``cpu:1``.
        device: Where the members compute; None for members without tensors, which take inputs wherever they are.
        members: Their indices, in order.
    """

    worker: str
    device: torch.device | None
    members: tuple[int, ...]


def group_members(members: Members, weights: Sequence[float]) -> list[Group]:
    """Group the members by worker, in the order of each worker's first member.

    Members of weight 0 are left out, and those that another process holds. Without a placement, members of one device
    form a group wherever they happen to be.
    """
    groups: dict[str, Group] = {}
    for index, weight in enumerate(weights):
        if weight == 0 or isinstance(members[index], Absent):
            continue
        if members.placement is not None:
            worker = members.placement.devices[index]
            device: torch.device | None = torch_device(worker)
        else:
            device = member_device(members[index])
            worker = str(device)
        before = groups[worker].members if worker in groups else ()
        groups[worker] = Group(worker, device, (*before, index))
    return list(groups.values())


def share_cores(groups: Sequence[Group]) -> dict[str, int | None]:
    """Split torch's intra-op threads between the workers on the CPU if there are several; None leaves a worker alone.

    Returns:
        Worker name to number of threads, at least 1.
    """
    lanes = [group.worker for group in groups if group.device is not None and group.device.type == "cpu"]
    if len(lanes) < 2:
        return dict.fromkeys([group.worker for group in groups])
    share, extra = divmod(torch.get_num_threads(), len(lanes))
    cores = {lane: max(1, share + (i < extra)) for i, lane in enumerate(lanes)}
    return {group.worker: cores.get(group.worker) for group in groups}
