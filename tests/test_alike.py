"""What counts as alike: all that would make one member compute otherwise than another with the same weights."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from fusion_ensemble_plugin.alike import difference


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.1), nn.Linear(4, 4))


def gpt2(**options: object) -> GPT2LMHeadModel:
    return GPT2LMHeadModel(GPT2Config(vocab_size=11, n_positions=8, n_embd=8, n_layer=1, n_head=2, **options))


class Scaled(nn.Module):
    """Computes with what is no parameter: an attribute, a tensor, a function with something closed over."""

    def __init__(self, scale: float = 1.0, shift: float = 0.0, power: int = 1) -> None:
        super().__init__()
        self.options = {"scale": [scale]}
        self.shift = torch.tensor(shift)
        self.raised = lambda x: x**power
        self.layer = nn.Linear(4, 4)


CHANGES: dict[str, Callable[[nn.Sequential], object]] = {
    "training mode": lambda m: m[2].eval(),
    "0.in_features is 4 in one and 5": lambda m: setattr(m[0], "in_features", 5),
    "1.momentum": lambda m: setattr(m[1], "momentum", 0.5),
    "p is 0.1 in one and 0.2": lambda m: setattr(m[2], "p", 0.2),
    "in only one": lambda m: m.append(nn.ReLU()),
    "is a Linear in one and a Identity": lambda m: m.__setitem__(3, nn.Identity()),
    "torch.float64": lambda m: m[3].double(),
    "parameters are": lambda m: setattr(m[0], "bias", None),
    "buffers are": lambda m: m[1].register_buffer("other", torch.zeros(2)),
    "different parameters are tied": lambda m: setattr(m[3], "weight", m[0].weight),
    "forward_hooks": lambda m: m[0].register_forward_hook(lambda *_: None),
    "note is in only one": lambda m: setattr(m, "note", "hello"),
}


@pytest.mark.parametrize("told", CHANGES)
def test_a_difference_is_told(told: str) -> None:
    left, right = model(), model()
    assert difference(left, right) == ""
    CHANGES[told](right)
    found = difference(left, right)
    if told == "training mode":
        assert found == "2.training is True in one and False in the other"
    else:
        assert told in found
    assert difference(right, left) != ""


def test_other_weights_and_names_are_no_difference() -> None:
    left, right = model(), model()
    with torch.no_grad():
        for tensor in (*right.parameters(), right[1].running_mean):
            tensor.add_(1)
    assert difference(left, right) == ""
    one, other = gpt2(name_or_path="here"), gpt2(name_or_path="there", id2label={0: "cat"})
    assert difference(one, other) == ""


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"scale": 2.0}, "options.scale.0 is 1.0 in one and 2.0 in the other"),
        ({"shift": 1.0}, "shift, a tensor that is no buffer, has different values"),
        ({"power": 2}, "raised is 1 in one and 2 in the other"),
    ],
)
def test_attributes_that_a_forward_may_read_are_compared_by_value(changed: dict[str, float], told: str) -> None:
    assert difference(Scaled(), Scaled()) == ""
    assert difference(Scaled(), Scaled(**changed)) == told


def test_an_option_of_a_models_config_is_a_difference_and_running_a_model_is_none() -> None:
    assert "activation_function" in difference(gpt2(), gpt2(activation_function="relu"))
    one, other = gpt2().eval(), gpt2().eval()
    one(torch.tensor([[1, 2]]), output_hidden_states=True)
    assert difference(one, other) == ""


def test_a_function_bound_to_one_module_can_not_compute_for_another() -> None:
    left, right = Scaled(), Scaled()
    left.raised, right.raised = (_through(module.layer) for module in (left, right))
    assert difference(left, right) == "raised is a function of one certain module"


def _through(layer: nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda x: layer(x)
