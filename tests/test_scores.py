"""Which outputs are class scores: what is combined as such, what gets the mean, and what is refused."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn
from transformers.modeling_outputs import SequenceClassifierOutput

from fusion_ensemble_plugin import LogOpinionPoolAlgorithm, MajorityVoteAlgorithm, ProbabilityEnsembleAlgorithm
from fusion_ensemble_plugin.plugins import make_reducer

SCORES = torch.tensor([[[2.0, 1.0, 0.0]], [[0.0, 1.0, 3.0]]])
COMBINED = SCORES.softmax(-1).mean(0).log()
MEAN = SCORES.mean(0)


class Logits(NamedTuple):
    """An output in which the class scores come second."""

    loss: Any
    logits: Any


class Returns(nn.Module):
    """A member with one output."""

    def __init__(self, output: Any) -> None:
        super().__init__()
        self.output = output

    def forward(self, x: Tensor) -> Any:
        return self.output


def ensemble_of(outputs: list[Any], **options: Any) -> Any:
    """Return what the probability ensemble of such members answers."""
    ensemble = ProbabilityEnsembleAlgorithm(**options).run([Returns(output) for output in outputs])
    try:
        return ensemble(torch.zeros(1))
    finally:
        ensemble.close()


def reducer(**options: Any) -> dict[str, Any]:
    return {"name": "probability_mean", **options}


def test_a_single_tensor_is_class_scores() -> None:
    torch.testing.assert_close(ensemble_of(list(SCORES)), COMBINED)


@pytest.mark.parametrize("kind", [dict, SequenceClassifierOutput, Logits])
def test_the_field_logits_is_combined_and_every_other_floating_field_gets_the_mean(kind: Any) -> None:
    result = ensemble_of([kind(loss=scores.sum(), logits=scores) for scores in SCORES])
    assert type(result) is kind
    fields = result if kind is dict else {"loss": result.loss, "logits": result.logits}
    torch.testing.assert_close(fields["logits"], COMBINED)
    torch.testing.assert_close(fields["loss"], SCORES.sum((1, 2)).mean())


@pytest.mark.parametrize("score_keys", ["scores", ["scores"], OmegaConf.create(["scores"])])
def test_other_fields_are_named_by_score_keys(score_keys: Any) -> None:
    outputs = [{"scores": scores, "logits": scores} for scores in SCORES]
    result = ensemble_of(outputs, reducer=reducer(score_keys=score_keys))
    torch.testing.assert_close(result["scores"], COMBINED)
    torch.testing.assert_close(result["logits"], MEAN)


@pytest.mark.parametrize("score_keys", [1, [1]])
def test_the_fields_of_a_tuple_are_named_by_their_places(score_keys: Any) -> None:
    result = ensemble_of([(scores, scores) for scores in SCORES], reducer=reducer(score_keys=score_keys))
    torch.testing.assert_close(result[0], MEAN)
    torch.testing.assert_close(result[1], COMBINED)


def test_several_fields_and_all_that_is_in_them_are_class_scores() -> None:
    outputs = [{"heads": {"a": scores, "b": (scores, scores)}, "logits": scores} for scores in SCORES]
    result = ensemble_of(outputs, reducer=reducer(score_keys=["heads", "logits"]))
    for combined in (result["heads"]["a"], *result["heads"]["b"], result["logits"]):
        torch.testing.assert_close(combined, COMBINED)


@pytest.mark.parametrize(("device_map", "executor"), [(None, "sequential"), (["cpu:0", "cpu:1"], "threads")])
@pytest.mark.parametrize(
    ("output", "told"),
    [
        (torch.tensor([[1, 2]]), "combines floating class scores, but output is a tensor of torch.int64"),
        (torch.tensor([[True, False]]), "output is a tensor of torch.bool"),
        (torch.ones(1, 2, dtype=torch.complex64), "output is a tensor of torch.complex64"),
        ({"logits": torch.tensor([[1, 2]])}, "output['logits'] is a tensor of torch.int64"),
        ({"logits": None, "hidden": torch.ones(1, 2)}, "output['logits'] is a NoneType"),
        ({"hidden": torch.ones(1, 2)}, "looks for them in 'logits', but the output has the fields ['hidden']"),
        ((torch.ones(1, 2),), "looks for them in 'logits', but the output has the fields [0]. Name the fields by"),
        (1.5, "output is a float"),
        ("text", "output is a str"),
        (None, "output is a NoneType"),
        (torch.tensor(1.0), "class_dim=-1 is not a dimension of output of shape ()"),
        (torch.ones(2, 1), "needs at least two classes, but output of shape (2, 1) has 1 along class_dim=-1"),
    ],
    ids=str,
)
def test_outputs_without_floating_class_scores_are_refused_by_name(
    output: Any, told: str, device_map: Any, executor: str
) -> None:
    with pytest.raises(ValueError, match="ProbabilityMeanReducer") as caught:
        ensemble_of([output, output], device_map=device_map, executor=executor)
    assert told in str(caught.value)


@pytest.mark.parametrize("method", [LogOpinionPoolAlgorithm, MajorityVoteAlgorithm])
def test_every_method_of_class_scores_refuses_integer_outputs(method: type[ProbabilityEnsembleAlgorithm]) -> None:
    with pytest.raises(ValueError, match=r"combines floating class scores, but output is a tensor of torch\.int64"):
        method().run([Returns(torch.tensor([[1, 2]]))] * 2)(torch.zeros(1))


def test_score_keys_of_an_output_without_fields_are_refused() -> None:
    with pytest.raises(ValueError, match="in 'scores', but the output is a single value without fields"):
        ensemble_of(list(SCORES), reducer=reducer(score_keys="scores"))


@pytest.mark.parametrize("score_keys", [[], (), True, 1.5, {"logits": 1}])
def test_score_keys_that_name_no_field_are_refused_with_all_else_that_is_wrong(score_keys: Any) -> None:
    with pytest.raises(ValueError, match="score_keys=") as caught:
        make_reducer(reducer(score_keys=score_keys, temperature=-1))
    assert "temperature=-1" in str(caught.value)
