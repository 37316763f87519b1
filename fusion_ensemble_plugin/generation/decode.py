"""The way in: checks, then one `EnsembleGenerator` for one call."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor
from transformers import GenerationConfig

from fusion_ensemble_plugin.generation.checks import TOKENS, check_members
from fusion_ensemble_plugin.generation.generator import EnsembleGenerator
from fusion_ensemble_plugin.generation.scores import MembersLevel, ReducerSpec, check_reducer, decoding_reducer
from fusion_ensemble_plugin.transfer import device_of

if TYPE_CHECKING:
    from fusion_ensemble_plugin.ensemble import ParallelEnsemble


def generate(
    ensemble: ParallelEnsemble,
    inputs: Tensor | None = None,
    generation_config: GenerationConfig | None = None,
    *args: Any,
    reducer: ReducerSpec | None = None,
    **kwargs: Any,
) -> Any:
    """Generate token sequences, all members of an ensemble deciding together on each token.

    Args:
        ensemble: Language models of one vocabulary, all decoder-only or all encoder-decoders.
        inputs: Prompts, (batch, positions), or what the encoders take; on any device.
        generation_config: As for a Hugging Face model; default: the first member's.
        *args: Further arguments of ``GenerationMixin.generate``, in its order.
        reducer: What combines the members' next-token scores; default: see
            `fusion_ensemble_plugin.generation.scores.decoding_reducer`.
        **kwargs: Further arguments of ``GenerationMixin.generate``, or inputs that all members take.

    Returns:
        What a Hugging Face model's ``generate`` returns, on the device of the inputs.

    Raises:
        TypeError: If members cannot generate; names them.
        ValueError: If members don't fit together, or an option makes no sense for several models.
    """
    weights = {name: weight for name, weight in zip(ensemble.names, ensemble.member_weights) if weight}
    members = {index: member for index, member in enumerate(ensemble.model_list) if ensemble.names[index] in weights}
    options = {**(generation_config.to_dict() if generation_config is not None else {}), **kwargs}
    check_members(
        dict(zip(weights, members.values())),
        given=[token for token in TOKENS if options.get(token) is not None],
    )
    combine = decoding_reducer(reducer, ensemble.reducer)
    check_reducer(combine, weights, ensemble.device)
    device = device_of((inputs, kwargs)) or ensemble.device
    generator = EnsembleGenerator(ensemble, members, MembersLevel(combine), device)
    return generator.generate(inputs, generation_config, *args, **kwargs)  # type: ignore[misc]
