"""Times taken in turn, and memory as the system counts it."""

from __future__ import annotations

import ctypes
import gc
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median

from fusion_ensemble_plugin.memory import return_freed

STATUS = Path("/proc/self/status")
CLEAR = Path("/proc/self/clear_refs")

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of the GNU C library's malloc.h

Seconds = dict[str, list[float]]
"""What was timed, and its seconds in each round."""


def in_turn(
    timed: Mapping[str, Callable[[], object]],
    rounds: int,
    repeats: Mapping[str, int] | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> Seconds:
    """Time several calls in turn, so that whatever else the machine does falls on all alike.

    Each is called once before, unmeasured. Who begins changes from round to round.

    Args:
        timed: What is timed.
        rounds: How often.
        repeats: How many calls of each make up one measurement, which is then their mean; default 1.
        clock: Tells the time in seconds; ``time.process_time`` leaves out the turns of other processes.
    """
    for call in timed.values():
        call()
    seconds: Seconds = {name: [] for name in timed}
    names = list(timed)
    for number in range(rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            count = (repeats or {}).get(name, 1)
            start = clock()
            for _ in range(count):
                timed[name]()
            seconds[name].append((clock() - start) / count)
    return seconds


def keep_freed_memory() -> None:
    """Let the C library keep what is freed for the next tensor, in this process and for good.

    As it is, it gives large blocks back to the system and takes them again, or does not, as the heap happens to lie:
    the page faults of that make the same call 20 % slower in one process than in the next.
    """
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        library.mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1)
        library.mallopt(M_MMAP_MAX, 0)


def ratio(seconds: Seconds, over: str, under: str) -> float:
    """Return the median of the rounds' ratios."""
    return median(mine / theirs for mine, theirs in zip(seconds[over], seconds[under]))


def medians(seconds: Seconds) -> dict[str, float]:
    """Return each one's median in seconds."""
    return {name: median(values) for name, values in seconds.items()}


def quietest(seconds: Seconds) -> dict[str, float]:
    """Return each one's shortest time in seconds: that of the round that other processes disturbed least."""
    return {name: min(values) for name, values in seconds.items()}


def peak_bytes(call: Callable[[], object]) -> int:
    """Return by how much the process's resident memory grew at most while a call ran; its result is dropped.

    Raises:
        RuntimeError: If this is not Linux, whose ``/proc`` tells.
    """
    before = reset_peak()
    call()
    return peak_since(before)


def reset_peak() -> int:
    """Return the resident bytes now, and let the system's high-water mark start from here."""
    if not CLEAR.exists():
        raise RuntimeError("the peak of resident memory can be measured on Linux only")
    gc.collect()
    return_freed()  # what the heap still holds would be used again without a trace
    CLEAR.write_text("5")
    return _status("VmRSS")


def peak_since(before: int) -> int:
    """Return by how much resident memory has been above ``before`` at most since `reset_peak`."""
    return _status("VmHWM") - before


def _status(key: str) -> int:
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) * 1024


def powers_of_two(last: int) -> Sequence[int]:
    """Return 1, 2, 4, ... up to ``last``.

    Examples:
        >>> powers_of_two(8)
        [1, 2, 4, 8]
    """
    return [1 << exponent for exponent in range(last.bit_length())]
