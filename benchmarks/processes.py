"""Members in processes of their own with no ensemble at all: what the machine's cores can do."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from multiprocessing.connection import Connection
from typing import Any

import torch

from benchmarks.measuring import keep_freed_memory

Make = Callable[[int], Any]


class Processes(AbstractContextManager["Processes"]):
    """Independent processes, each with its share of the members and of the cores.

    Args:
        make: Makes a member from its number; a function of a module, since other processes import it.
        shares: The numbers of each process's members.
        x: The input of all.
    """

    def __init__(self, make: Make, shares: Sequence[Sequence[int]], x: torch.Tensor) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["benchmarks.models"])
        threads, rest = divmod(torch.get_num_threads(), len(shares))
        self._workers = []
        for number, share in enumerate(shares):
            here, there = context.Pipe()
            arguments = (make, share, x, max(1, threads + (number < rest)), there)
            process = context.Process(target=_work, args=arguments, daemon=True)
            process.start()
            self._workers.append((process, here))
        for _, connection in self._workers:
            connection.recv()  # ready

    def __call__(self) -> None:
        """Let every process run its members once, all at the same time, and wait for all."""
        for _, connection in self._workers:
            connection.send(True)
        for _, connection in self._workers:
            connection.recv()

    def __exit__(self, *error: object) -> None:
        for process, connection in self._workers:
            connection.send(False)
            process.join()


@torch.inference_mode()
def _work(make: Make, share: Sequence[int], x: torch.Tensor, threads: int, connection: Connection[Any, Any]) -> None:
    torch.set_num_threads(threads)
    keep_freed_memory()
    members = [make(seed) for seed in share]
    connection.send(True)
    while connection.recv():
        for member in members:
            member(x)
        connection.send(True)
