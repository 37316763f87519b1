"""What the methods make of a CLIP pool: members' logits inside FusionBench's unchanged task pool, or their features."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import lightning
import pytest
import torch
from combinations import ORACLES
from conftest import RunCli
from fusion_bench.models.hf_clip import HFCLIPClassifier
from fusion_bench.taskpool import CLIPVisionModelTaskPool
from fusion_bench.tasks.clip_classification import get_classnames_and_templates
from fusion_bench.utils import instantiate
from hydra import compose, initialize_config_dir
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig

from fusion_ensemble_plugin import (
    ClipHead,
    ClipLogitEnsemble,
    ClipLogitEnsembleAlgorithm,
    LogOpinionPoolAlgorithm,
    MajorityVoteAlgorithm,
    ProbabilityEnsemble,
    ProbabilityEnsembleAlgorithm,
    SimpleEnsembleAlgorithm,
)
from fusion_ensemble_plugin.plugins import make_reducer
from fusion_ensemble_plugin.reducer import reduce_tensors

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]  # the first run may train the benchmark

TASKS = ["digits", "faces", "textures"]
LANES = ["cpu:0", "cpu:1", "cpu:0", "cpu:1"]
POOLS = ["modelpool=CLIPVisionModelPool/clip-vit-tiny_TA4", "taskpool=CLIPVisionModelTaskPool/clip-vit-tiny_TA4"]


Batch = tuple[Tensor, Tensor]


class Benchmark(NamedTuple):
    """The offline benchmark with three of its four tasks.

    Attributes:
        modelpool: As the host makes it.
        taskpool: Likewise.
        batches: Images and labels of each task.
        members: The logits of each member alone, (members, batch, classes), for each batch of each task.
    """

    modelpool: Any
    taskpool: CLIPVisionModelTaskPool
    batches: dict[str, list[Batch]]
    members: dict[str, list[Tensor]]


@pytest.fixture(scope="module")
def benchmark(host_config_dir: Path) -> Benchmark:
    with initialize_config_dir(str(host_config_dir), version_base=None):
        cfg = compose("fabric_model_fusion", [*POOLS, "~taskpool.test_datasets.mnist"])
    modelpool, taskpool = (instantiate(node, _recursive_=False) for node in (cfg.modelpool, cfg.taskpool))
    taskpool._fabric_instance = lightning.Fabric(accelerator="cpu", devices=1)
    taskpool.setup()
    made = Benchmark(modelpool, taskpool, {task: list(taskpool.test_dataloaders[task]) for task in TASKS}, {})
    towers = [modelpool.load_model(name) for name in modelpool.model_names]
    for task in TASKS:
        made.members[task] = [torch.stack(batch) for batch in zip(*(logits(tower, made, task) for tower in towers))]
    return made


@torch.no_grad()
def logits(tower: nn.Module, benchmark: Benchmark, task: str) -> list[Tensor]:
    """Return what the host's own classifier makes of a vision tower, (batch, classes) for each batch of a task."""
    taskpool = benchmark.taskpool
    classifier = HFCLIPClassifier(taskpool.clip_model, processor=taskpool.processor)
    classifier.clip_model.vision_model = tower.eval()
    classifier.set_classification_task(*get_classnames_and_templates(task))
    return [classifier(images, task_name=task) for images, _ in benchmark.batches[task]]


def combined(benchmark: Benchmark, task: str, reducer: str, weights: list[float]) -> list[Tensor]:
    """Return the explicit combination of the logits that each member alone gets, in float64."""
    used = [i for i, weight in enumerate(weights) if weight]
    return [
        reduce_tensors(make_reducer(reducer), list(batch.double()[used]), [weights[i] for i in used])
        for batch in benchmark.members[task]
    ]


@torch.no_grad()
def in_the_first_batch(benchmark: Benchmark, task: str, method: str) -> Tensor:
    """Return the logits that a method is to have in a task pool, from its oracle, in float64.

    The methods of class scores combine the members' logits, all others their pooled features.
    """
    if method == "clip_logit_ensemble":
        return benchmark.members[task][0].double().mean(0)
    if method in ("probability_ensemble", "log_opinion_pool", "majority_vote"):
        return ORACLES[method](benchmark.members[task][0].double())
    pool, clip = benchmark.modelpool, benchmark.taskpool.clip_model
    towers = [pool.load_model(name).eval() for name in pool.model_names]
    pooled = torch.stack([tower(benchmark.batches[task][0][0]).pooler_output for tower in towers])
    embeds = nn.functional.normalize(
        ORACLES[method](pooled.double()) @ clip.visual_projection.weight.double().T, dim=-1
    )
    classifier = HFCLIPClassifier(clip, processor=benchmark.taskpool.processor)
    classifier.set_classification_task(*get_classnames_and_templates(task))
    logits: Tensor = clip.logit_scale.double().exp() * embeds @ classifier.zeroshot_weights.double().T
    return logits


def test_each_method_runs_through_the_command_line_and_reports_its_oracles_accuracy_and_loss(
    benchmark: Benchmark, run_cli: RunCli, tmp_path: Path
) -> None:
    methods = [*ORACLES, "clip_logit_ensemble"]
    sweep = f"method={','.join(f'ensemble/{method}' for method in methods)}"
    fewer = ["~taskpool.test_datasets.mnist", "~taskpool.test_datasets.textures", "fast_dev_run=true"]
    run_cli("-m", sweep, *POOLS, *fewer, "report_save_path=${hydra:runtime.choices.method}.json", cwd=tmp_path)
    for method in methods:
        report = json.loads((tmp_path / f"ensemble/{method}.json").read_text())
        for task in ("digits", "faces"):
            expected, labels = in_the_first_batch(benchmark, task, method), benchmark.batches[task][0][1]
            if method == "majority_vote":  # ties go to the more probable class; the loss is the reducers' tests' affair
                expected = expected + 1e-3 * benchmark.members[task][0].double().softmax(-1).mean(0)
            else:
                loss = nn.functional.cross_entropy(expected, labels).item()
                assert report[task]["loss"] == pytest.approx(loss, abs=1e-5), method
            accuracy = (expected.argmax(-1) == labels).double().mean().item()
            assert report[task]["accuracy"] == pytest.approx(accuracy, abs=1e-7), method


def assert_same_logits(ours: list[Tensor], expected: list[Tensor]) -> None:
    """Compare ranks and values."""
    for one, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-4, atol=1e-4)
        assert torch.equal(one.argmax(-1), other.argmax(-1))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"device_map": LANES},
        {"executor": "stacked"},
        {"weights": {"mnist": 0.5, "digits": 1, "faces": 3, "textures": 0}},
    ],
    ids=str,
)
def test_the_task_pools_logits_are_the_mean_of_the_members_logits(
    options: dict[str, Any], benchmark: Benchmark
) -> None:
    weights = list(options.get("weights", dict.fromkeys(range(4), 1.0)).values())
    ensemble = ClipLogitEnsembleAlgorithm(**options).run(benchmark.modelpool)
    for task in TASKS:
        assert_same_logits(logits(ensemble, benchmark, task), combined(benchmark, task, "mean", weights))
    ensemble.close()


@pytest.mark.parametrize("again", [copy.deepcopy, lambda ensemble: pickle.loads(pickle.dumps(ensemble))])
def test_a_copy_answers_the_same_before_and_after_it_has_read_a_tasks_class_names(
    again: Callable[[ClipLogitEnsemble], ClipLogitEnsemble], benchmark: Benchmark
) -> None:
    ensemble = ProbabilityEnsembleAlgorithm().run(benchmark.modelpool)
    fresh = again(ensemble)
    expected = logits(ensemble, benchmark, "faces")
    for copied in (fresh, again(ensemble)):
        assert torch.equal(logits(copied, benchmark, "faces")[0], expected[0])


def test_the_mean_of_pooled_features_is_another_thing(benchmark: Benchmark) -> None:
    pooled = logits(SimpleEnsembleAlgorithm().run(benchmark.modelpool), benchmark, "digits")
    expected = combined(benchmark, "digits", "mean", [1.0] * 4)
    assert (pooled[0] - expected[0]).abs().max() > 0.5
    assert not torch.equal(pooled[0].argmax(-1), expected[0].argmax(-1))


@pytest.mark.parametrize("method", [ClipLogitEnsembleAlgorithm, ProbabilityEnsembleAlgorithm])
def test_accuracy_and_loss_of_the_report_are_those_of_the_members_combined_logits(
    method: type[SimpleEnsembleAlgorithm], benchmark: Benchmark
) -> None:
    report = benchmark.taskpool.evaluate(method().run(benchmark.modelpool))
    for task in TASKS:
        labels = [labels for _, labels in benchmark.batches[task]]
        expected = combined(benchmark, task, method.ensemble_class.default_reducer, [1.0] * 4)
        correct = torch.cat([one.argmax(-1) == target for one, target in zip(expected, labels)])
        losses = [nn.functional.cross_entropy(one, target).item() for one, target in zip(expected, labels)]
        assert report[task]["accuracy"] == pytest.approx(correct.double().mean().item(), abs=1e-7)
        assert report[task]["loss"] == pytest.approx(fmean(losses), abs=1e-5)  # the host averages over batches


@pytest.mark.parametrize("method", [ProbabilityEnsembleAlgorithm, LogOpinionPoolAlgorithm, MajorityVoteAlgorithm])
def test_methods_of_class_scores_combine_the_members_logits_in_a_clip_pool(
    method: type[SimpleEnsembleAlgorithm], benchmark: Benchmark
) -> None:
    weights = [1.0, 2.0, 0.5, 3.0]
    ensemble = method(weights=weights).run(benchmark.modelpool)
    assert isinstance(ensemble, ClipLogitEnsemble)
    for task in TASKS:
        expected = combined(benchmark, task, method.ensemble_class.default_reducer, weights)
        assert_same_logits(logits(ensemble, benchmark, task), expected)


def test_a_variant_with_a_method_of_its_own_gets_the_members_logits(benchmark: Benchmark) -> None:
    class Highest(ClipLogitEnsemble):
        def _aggregate_tensors(self, outputs: list[Tensor]) -> Tensor:
            return torch.stack(outputs).amax(0)

    class HighestAlgorithm(ClipLogitEnsembleAlgorithm):
        ensemble_class = Highest

    ensemble = HighestAlgorithm(device_map=LANES).run(benchmark.modelpool)
    assert_same_logits(logits(ensemble, benchmark, "faces"), combined(benchmark, "faces", "max", [1.0] * 4))
    ensemble.close()


def test_a_variant_of_class_scores_with_a_method_of_its_own_is_told_what_it_would_get(benchmark: Benchmark) -> None:
    class Highest(ProbabilityEnsemble):
        def _aggregate_tensors(self, outputs: list[Tensor]) -> Tensor:
            return torch.stack(outputs).amax(0)

    class HighestAlgorithm(ProbabilityEnsembleAlgorithm):
        ensemble_class = Highest

    with pytest.raises(ValueError, match=r"Highest has an _aggregate_tensors of its own.* derive it from ClipLogitEns"):
        HighestAlgorithm().run(benchmark.modelpool)


def test_a_class_score_reducer_on_pooled_features_is_refused(benchmark: Benchmark) -> None:
    ensemble = SimpleEnsembleAlgorithm(reducer="probability_mean").run(benchmark.modelpool)
    with pytest.raises(ValueError, match="Features, such as a CLIP tower's, are no class scores"):
        logits(ensemble, benchmark, "faces")


def test_a_task_pool_with_another_projection_is_told_on_the_first_batch(benchmark: Benchmark) -> None:
    head = ClipHead(benchmark.taskpool.clip_model)
    head.projection = torch.randn_like(head.projection)
    members = [benchmark.modelpool.load_model(name) for name in benchmark.modelpool.model_names]
    with pytest.raises(RuntimeError, match="visual projection is not the one of this ensemble's head"):
        logits(ClipLogitEnsemble(members, head=head), benchmark, "faces")


def test_a_clip_model_may_be_named_for_a_pool_without_a_pretrained_one(benchmark: Benchmark) -> None:
    pool = benchmark.modelpool
    members = {name: pool.load_model(name) for name in pool.model_names}
    path = pool.get_model_config("_pretrained_")["pretrained_model_name_or_path"]
    clip_model = instantiate(path) if not isinstance(path, str) else path
    ensemble = ClipLogitEnsembleAlgorithm(clip_model=clip_model).run(members)
    assert_same_logits(logits(ensemble, benchmark, "faces"), combined(benchmark, "faces", "mean", [1.0] * 4))


def test_with_more_classes_than_dimensions_a_vote_is_refused_and_the_mean_works() -> None:
    head = ClipHead(_clip_model(embedding=3), processor=object())  # never asked: the text embeddings are there already
    head._text_embeds["many"] = nn.functional.normalize(torch.randn(8, 3), dim=-1)
    towers, images = [nn.Linear(6, 5), nn.Linear(6, 5)], torch.randn(4, 6)
    for reducer, works in (("mean", True), ("majority_vote", False)):
        ensemble = ClipLogitEnsemble(towers, head=head, reducer=reducer)
        embeds = nn.functional.normalize(ensemble(images) @ head.projection.T, dim=-1)
        if works:
            assert ensemble.compute_surgery_features(embeds, "many")[0].shape == (4, 3)
        else:
            with pytest.raises(
                ValueError, match="'many': no embedding of 3 dimensions has the combined logits of its 8"
            ):
                ensemble.compute_surgery_features(embeds, "many")


def test_correcting_embeddings_without_a_forward_is_refused() -> None:
    ensemble = ClipLogitEnsemble([nn.Linear(6, 5)], head=ClipHead(_clip_model(embedding=3)))
    with pytest.raises(RuntimeError, match="comes after forward"):
        ensemble.compute_surgery_features(torch.zeros(1, 3), "mnist")


def test_a_reducer_that_needs_the_class_names_is_refused_without_a_processor() -> None:
    head, towers = ClipHead(_clip_model(embedding=3)), [nn.Linear(6, 5), nn.Linear(6, 5)]
    with pytest.raises(ValueError, match="MedianReducer combines the members' logits, for which the head needs a proc"):
        ClipLogitEnsemble(towers, head=head, reducer="median")
    ensemble = ClipLogitEnsemble(towers, head=head)
    with pytest.raises(ValueError, match="needs a processor"):
        ensemble.recombine(reducer="majority_vote")
    with pytest.raises(ValueError, match="VarianceReducer does not turn logits into logits"):
        ensemble.recombine(reducer="variance")
    ensemble.recombine(reducer="sum", weights=[1, -1])
    assert ensemble.member_weights == (1.0, -1.0)


def test_a_head_freezes_the_model_that_it_shares() -> None:
    model = _clip_model(embedding=3)
    ClipHead(model)
    assert not any(p.requires_grad for p in model.text_model.parameters())
    assert model.vision_model.encoder.layers[0].mlp.fc1.weight.requires_grad


def _clip_model(embedding: int) -> CLIPModel:
    """Return an untrained CLIP model with features of width 5."""
    text = CLIPTextConfig(vocab_size=8, hidden_size=4, intermediate_size=4, num_hidden_layers=1, num_attention_heads=1)
    vision = CLIPVisionConfig(hidden_size=5, intermediate_size=4, num_hidden_layers=1, num_attention_heads=1)
    return CLIPModel(CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=embedding))
