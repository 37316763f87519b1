"""Tiny language models with random weights, and slow ways to decode with several of them that share no code with ours.

Their weights are large enough that distributions are far from uniform and differ between members, and small enough that
a rounding error does not decide for a token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)

VOCABULARY = 97
PAD, EOS = 0, 1
TOKENS = {"pad_token_id": PAD, "eos_token_id": EOS, "bos_token_id": 2}


def gpt2(seed: int, vocab_size: int = VOCABULARY, **options: Any) -> GPT2LMHeadModel:
    torch.manual_seed(seed)
    sizes = {"n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "initializer_range": 0.3}
    return GPT2LMHeadModel(GPT2Config(vocab_size=vocab_size, **{**sizes, **TOKENS, **options})).eval()


def llama(seed: int, vocab_size: int = VOCABULARY, **options: Any) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "initializer_range": 0.3}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
    return LlamaForCausalLM(LlamaConfig(vocab_size=vocab_size, **{**sizes, **heads, **TOKENS, **options})).eval()


def t5(seed: int, vocab_size: int = VOCABULARY, **options: Any) -> T5ForConditionalGeneration:
    torch.manual_seed(seed)
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "initializer_factor": 3.0}
    tokens = {"pad_token_id": PAD, "eos_token_id": EOS, "decoder_start_token_id": PAD}
    model = T5ForConditionalGeneration(T5Config(vocab_size=vocab_size, **{**sizes, **tokens, **options}))
    model.shared.weight.data.mul_(0.1)  # else each token is followed by itself: T5 reads and writes by one matrix
    return model.eval()


FAMILIES: dict[str, Callable[..., PreTrainedModel]] = {"gpt2": gpt2, "llama": llama, "t5": t5}


def prompts(batch: int = 3, length: int = 7) -> dict[str, Tensor]:
    """Return ``input_ids`` and ``attention_mask``, (batch, positions); the first row is padded on the left."""
    ids = torch.randint(3, VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    ids[0, :3], mask[0, :3] = PAD, 0
    return {"input_ids": ids, "attention_mask": mask}


Pool = Callable[[Tensor], Tensor]
"""Members' probabilities (members, batch, vocabulary) to log-probabilities (batch, vocabulary)."""


def mean_of_probabilities(probabilities: Tensor) -> Tensor:
    return probabilities.mean(0).log()


def next_scores(
    members: Sequence[Any], inputs: dict[str, Tensor], tokens: Tensor, pool: Pool = mean_of_probabilities
) -> Tensor:
    """Compute all members' next-token log-probabilities from nothing: no cache, every position anew, in float64.

    Args:
        members: Models in float64.
        inputs: The prompts.
        tokens: What has been generated, (batch, positions); for encoder-decoders with the start token.
        pool: What combines the members.
    """
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    logits = []
    for member in members:
        if member.config.is_encoder_decoder:
            output = member(input_ids=ids, attention_mask=mask, decoder_input_ids=tokens, use_cache=False)
        else:
            whole = torch.cat([ids, tokens], 1)
            seen = torch.cat([mask, torch.ones_like(tokens)], 1)
            places = (seen.cumsum(1) - 1).clamp(min=0)
            output = member(input_ids=whole, attention_mask=seen, position_ids=places, use_cache=False)
        logits.append(output.logits[:, -1])
    return pool(torch.stack(logits).softmax(-1))


@torch.no_grad()
def slow_greedy(
    members: Sequence[Any], inputs: dict[str, Tensor], steps: int, pool: Pool = mean_of_probabilities
) -> Tensor:
    """Decode greedily; rows that have ended are filled with padding."""
    tokens = _start(members, inputs)
    going = torch.ones(len(tokens), dtype=torch.bool)
    for _ in range(steps):
        best = next_scores(members, inputs, tokens, pool).argmax(-1)
        tokens = torch.cat([tokens, torch.where(going, best, PAD)[:, None]], 1)
        going &= best != EOS
        if not going.any():
            break
    return _whole(members, inputs, tokens)


@torch.no_grad()
def slow_beams(members: Sequence[Any], inputs: dict[str, Tensor], steps: int, beams: int) -> Tensor:
    """Search with beams, row by row, for exactly ``steps`` tokens, of which none is the end token."""
    found = []
    for row in range(len(inputs["input_ids"])):
        one = {name: tensor[row : row + 1] for name, tensor in inputs.items()}
        alive = [(0.0, _start(members, one))]
        for _ in range(steps):
            wider = []
            for score, tokens in alive:
                scores = next_scores(members, one, tokens)[0]
                scores[EOS] = -torch.inf
                top = scores.topk(beams)
                wider += [
                    (score + gain, torch.cat([tokens, torch.tensor([[token]])], 1))
                    for gain, token in zip(top.values.tolist(), top.indices.tolist())
                ]
            alive = sorted(wider, key=lambda pair: -pair[0])[:beams]
        found.append(alive[0][1])
    return _whole(members, inputs, torch.cat(found))


def _start(members: Sequence[Any], inputs: dict[str, Tensor]) -> Tensor:
    length = 1 if members[0].config.is_encoder_decoder else 0
    return torch.full((len(inputs["input_ids"]), length), PAD)


def _whole(members: Sequence[Any], inputs: dict[str, Tensor], tokens: Tensor) -> Tensor:
    return tokens if members[0].config.is_encoder_decoder else torch.cat([inputs["input_ids"], tokens], 1)
