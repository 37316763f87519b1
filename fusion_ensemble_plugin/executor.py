"""Running calls: one after another, or each on a long-lived worker of its own.

An executor gets one call for each worker and returns the results in order. It knows nothing of models or devices.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from threading import Lock, Thread
from typing import Protocol, TypeVar

import torch

from fusion_ensemble_plugin.caller_state import bound_to_its_thread, with_caller_state

T = TypeVar("T")

# Two callers must not start the same worker twice, nor any two workers change torch's number of threads at once.
_starting = Lock()


class Executor(Protocol):
    """Runs one call for each worker.

    It is made as ``factory(cores)``, where ``cores`` maps each worker's name to its share of the CPU cores, or to None
    for a worker that keeps torch's setting.
    """

    # An executor with ``stacks_members = True`` asks for the members of each worker to run as one, vectorised.

    def run(self, calls: Mapping[str, Callable[[], T]]) -> list[T]:
        """Run all calls (worker name to call) and return their results in the same order.

        Raises:
            Exception: The error of the first call, in order, that failed. All others have ended by then.
        """
        ...

    def close(self) -> None:
        """End all workers; they may be started again by the next `run`."""
        ...


class SequentialExecutor:
    """Runs the calls one after another in the calling thread.

    Examples:
        >>> SequentialExecutor({}).run({"a": lambda: 1, "b": lambda: 2})
        [1, 2]
    """

    def __init__(self, cores: Mapping[str, int | None]) -> None:
        del cores  # the calling thread keeps its own setting

    def run(self, calls: Mapping[str, Callable[[], T]]) -> list[T]:
        """Run in order; the first error ends the run."""
        return [call() for call in calls.values()]

    def close(self) -> None:
        """Do nothing: there are no workers."""


class ThreadsExecutor:
    """Runs each call on its worker's own thread, all at the same time.

    Threads start on first use and live as long as the executor. Calls see the caller's torch state (see
    `fusion_ensemble_plugin.caller_state`). What holds in the caller's thread alone, a transform of ``torch.func`` or a
    mode of torch, makes them run there, one after another.

    Args:
        cores: Worker name to number of torch's intra-op threads in that worker.

    Examples:
        >>> threads = ThreadsExecutor({"a": None, "b": None})
        >>> threads.run({"a": lambda: 1, "b": lambda: 2})
        [1, 2]
        >>> threads.close()
    """

    def __init__(self, cores: Mapping[str, int | None]) -> None:
        self._cores = dict(cores)
        self._workers: dict[str, ThreadPoolExecutor] = {}

    def run(self, calls: Mapping[str, Callable[[], T]]) -> list[T]:
        """Run at the same time; an error waits for the others, an interrupt drops those not yet begun."""
        if bound_to_its_thread():
            return [call() for call in calls.values()]
        futures = [self._worker(name).submit(with_caller_state(call)) for name, call in calls.items()]
        results: list[T] = []
        try:
            wait(futures)
            while futures:
                results.append(futures.pop(0).result())
            return results
        finally:
            # an error's traceback holds this frame, and a future its error: held here, they would hold each other
            while futures:
                futures.pop().cancel()
            del results

    def close(self) -> None:
        """End the threads."""
        workers, self._workers = self._workers, {}
        for worker in workers.values():
            worker.shutdown()

    def _worker(self, name: str) -> ThreadPoolExecutor:
        with _starting:
            if name not in self._workers:
                worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"ensemble-{name}")
                _share_cores(worker, self._cores.get(name))
                self._workers[name] = worker
            return self._workers[name]


class StackedExecutor(ThreadsExecutor):
    """Asks for each worker's members to run as one, vectorised; see `fusion_ensemble_plugin.stacked`.

    The workers run at the same time; a single one in the calling thread.
    """

    stacks_members = True

    def run(self, calls: Mapping[str, Callable[[], T]]) -> list[T]:
        """Run at the same time; see `ThreadsExecutor.run`."""
        return super().run(calls) if len(calls) > 1 else [call() for call in calls.values()]


def _share_cores(worker: ThreadPoolExecutor, cores: int | None) -> None:
    """Give a worker its number of intra-op threads and leave every other thread's number as it was.

    ``torch.set_num_threads`` sets the calling thread's number and also the default of threads that start later, so the
    default is put back, by a thread that ends at once. A worker that has not read its number yet would take that
    default on its first operation and lose its own: so it reads first.
    """
    if cores is None:
        return
    default = worker.submit(torch.get_num_threads).result()
    worker.submit(torch.set_num_threads, cores).result()
    restore = Thread(target=torch.set_num_threads, args=(default,))
    restore.start()
    restore.join()
