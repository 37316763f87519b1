"""What torch keeps per thread, carried from the calling thread into a worker.

A new thread starts with torch's defaults: gradients on, no inference mode, no autocast, the default device and stream
(pytorch issue 20528). The default dtype and the deterministic setting are the process's and need no carrying.
"""

from __future__ import annotations

import contextvars
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import TypeVar

import torch
from torch.overrides import _get_current_function_mode_stack
from torch.utils._device import DeviceContext

T = TypeVar("T")

Enter = Callable[[], AbstractContextManager[object]]


def with_caller_state(call: Callable[[], T]) -> Callable[[], T]:
    """Bind a call to the state of the thread that calls this.

    Carried are: grad mode, inference mode, autocast of every device type, the default device, the current CUDA device
    and the current CUDA stream of each device, and Python's context variables.

    Args:
        call: What another thread is to run.

    Returns:
        A callable that runs ``call`` in that state and leaves the state of its own thread as it was.

    Examples:
        >>> with torch.no_grad():
        ...     in_worker = with_caller_state(torch.is_grad_enabled)
        >>> torch.is_grad_enabled(), in_worker()
        (True, False)
    """
    enters = [*_devices(), *_autocasts(), *_modes()]
    variables = contextvars.copy_context()

    def run() -> T:
        with ExitStack() as stack:
            for enter in enters:
                stack.enter_context(enter())
            return variables.run(call)

    return run


def bound_to_its_thread() -> bool:
    """Say whether the caller is inside what no other thread can be brought into.

    That is a transform of ``torch.func``, which a call in another thread would ignore without a word (a derivative
    would be 0), or one of torch's modes, such as fake tensors or the counter of operations.

    Examples:
        >>> def member(x):
        ...     print(bound_to_its_thread())
        ...     return x**2
        >>> member(3.0), float(torch.func.grad(member)(torch.tensor(3.0)))
        False
        True
        (9.0, 6.0)
    """
    stack = _get_current_function_mode_stack()  # type: ignore[no-untyped-call]
    modes = [mode for mode in stack if not isinstance(mode, DeviceContext)]  # the default device is carried
    transform = torch._C._functorch.peek_interpreter_stack()
    return bool(modes) or torch._C._len_torch_dispatch_stack() > 0 or transform is not None


def _modes() -> list[Enter]:
    inference, grad = torch.is_inference_mode_enabled(), torch.is_grad_enabled()
    return [lambda: torch.inference_mode(inference), lambda: torch.set_grad_enabled(grad)]


def _autocasts() -> list[Enter]:
    return [_autocast(kind) for kind in _autocast_types() if torch.is_autocast_enabled(kind)]


def _autocast(kind: str) -> Enter:
    dtype, cache = torch.get_autocast_dtype(kind), torch.is_autocast_cache_enabled()
    return lambda: torch.autocast(kind, dtype=dtype, cache_enabled=cache)


def _autocast_types() -> list[str]:
    kinds = ("cpu", "cuda", "xpu", "mps", "hpu", torch._C._get_privateuse1_backend_name())
    return [kind for kind in kinds if torch.amp.is_autocast_available(kind)]


def _devices() -> list[Enter]:
    enters: list[Enter] = []
    default = torch.get_default_device()
    if default != torch.device("cpu"):
        enters.append(lambda: torch.device(default))
    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        streams = [torch.cuda.current_stream(i) for i in range(torch.cuda.device_count())]
        current = torch.cuda.current_device()
        enters.append(lambda: _cuda(streams, current))
    return enters


@contextmanager
def _cuda(streams: list[torch.cuda.Stream], current: int) -> Iterator[None]:
    with ExitStack() as stack:
        for stream in streams:
            stack.enter_context(torch.cuda.stream(stream))
        stack.enter_context(torch.cuda.device(current))
        yield
