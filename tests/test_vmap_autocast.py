"""Under autocast a stack computes each operation in the precision in which a single member does."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fusion_ensemble_plugin.vmap_autocast import vmap_autocast

MEMBERS = 3
X = torch.randn(2, 4, 8)

Operation = Callable[[Tensor, Tensor], Tensor]

OPERATIONS: dict[str, Operation] = {
    "linear": lambda w, b: F.linear(X, w, b),
    "linear by keywords": lambda w, b: F.linear(input=X, weight=w, bias=b),
    "linear without bias": lambda w, b: F.linear(X, w),
    "addmm": lambda w, b: torch.addmm(b, X[0], w.T, beta=0.5, alpha=2.0),
    "baddbmm": lambda w, b: torch.baddbmm(b.expand(2, 4, 8), X, w.T.expand(2, 8, 8)),
    "convolution": lambda w, b: F.conv1d(X.mT, w[:, :, None], b, padding=1, stride=2),
    "convolution by keywords": lambda w, b: F.conv1d(X.mT, w[:, :, None], bias=b, dilation=2),
    "transposed convolution": lambda w, b: F.conv_transpose1d(X.mT, w[:, :, None], b),
    "product": lambda w, b: X @ w,
    "layer norm": lambda w, b: F.layer_norm(X, (8,), w[0], b),
    "softmax": lambda w, b: (X * b).softmax(-1),
    "sum": lambda w, b: X + b,
    "gelu after linear": lambda w, b: F.gelu(F.linear(X, w, b)),
    "float64": lambda w, b: F.linear(X.double(), w.double(), b.double()),
    "convolution in float64": lambda w, b: F.conv1d(X.mT.double(), w[:, :, None].double(), b.double()),
    "embedding": lambda w, b: F.embedding(torch.tensor([1, 2]), w) + b,
}


def weights() -> tuple[Tensor, Tensor]:
    """Return each member's matrix and vector, ``(members, 8, 8)`` and ``(members, 8)``."""
    torch.manual_seed(0)
    return torch.randn(MEMBERS, 8, 8), torch.randn(MEMBERS, 8)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_has_the_precision_that_it_has_for_a_single_member(name: str, dtype: torch.dtype) -> None:
    operation, (matrices, vectors) = OPERATIONS[name], weights()
    with torch.autocast("cpu", dtype):
        expected = torch.stack([operation(w, b) for w, b in zip(matrices, vectors)])
        with vmap_autocast("cpu"):
            found = torch.func.vmap(operation)(matrices, vectors)
    assert found.dtype == expected.dtype
    torch.testing.assert_close(found, expected, atol=0.05, rtol=0.05)


def test_without_autocast_nothing_is_lowered() -> None:
    matrices, vectors = weights()
    for kind in ("cpu", "cuda"):  # autocast on another type of device is none
        with torch.autocast("cpu", torch.bfloat16, enabled=kind == "cuda"), vmap_autocast(kind):
            found = torch.func.vmap(lambda w, b: F.conv1d(X.mT, w[:, :, None], b))(matrices, vectors)
        assert found.dtype == torch.float32
