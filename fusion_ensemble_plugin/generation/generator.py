"""Transformers' decoding loop, with an ensemble in the model's place."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import GenerationConfig
from transformers.generation.utils import GenerationMixin
from transformers.modeling_outputs import CausalLMOutputWithPast

from fusion_ensemble_plugin.generation.caches import MemberCaches
from fusion_ensemble_plugin.generation.checks import check_config, check_inputs
from fusion_ensemble_plugin.outputs import Fold
from fusion_ensemble_plugin.reducer import Reducer

if TYPE_CHECKING:
    from fusion_ensemble_plugin.ensemble import ParallelEnsemble


class EnsembleGenerator(GenerationMixin):
    """What stands in the model's place for one call of ``generate``, and holds all that lives as long as the call.

    The loop, the logits processors and the choice of tokens run once, in the calling thread. What a family of models
    does its own way (preparing inputs, encoding, its kind of cache) is left to each member's own methods.

    Args:
        ensemble: Runs the members.
        members: Member index to model, for those that have a weight.
        reducer: Combines scores of shape (batch, positions, vocabulary).
        device: Where the loop runs.
    """

    def __init__(
        self, ensemble: ParallelEnsemble, members: Mapping[int, Any], reducer: Reducer, device: torch.device
    ) -> None:
        first = next(iter(members.values()))
        self.config = first.config
        self.generation_config = first.generation_config
        self.main_input_name = first.main_input_name
        self.device = device
        self._is_stateful = any(member._is_stateful for member in members.values())
        if hasattr(first, "encoder"):
            self.encoder = first.encoder  # the loop asks it for the name of its input
        self._ensemble = ensemble
        self._members = members
        self._named = {ensemble.names[index]: member for index, member in members.items()}
        self._new_fold = partial(Fold, reducer)
        self._unknown = {index: _unknown_inputs(member) for index, member in members.items()}

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: MemberCaches | None = None,
        encoder_outputs: Mapping[int, Any] | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 1,
        return_dict: bool = True,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Run one step: every member on the same tokens, with its own cache and its own encoder's output.

        Returns:
            The combined scores of the last positions, (batch, logits_to_keep, vocabulary), and the caches.
        """
        del return_dict  # the loop always wants one
        caches = past_key_values or MemberCaches({index: {} for index in self._members})
        shared = dict(kwargs, attention_mask=attention_mask, position_ids=position_ids, use_cache=use_cache)

        def step(index: int, member: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Tensor]:
            own = {} if encoder_outputs is None else {"encoder_outputs": encoder_outputs[index]}
            known = {name: value for name, value in kwargs.items() if name not in self._unknown[index]}
            inputs = member.prepare_inputs_for_generation(*args, **known, **own, **caches.of(index))
            output = member(**inputs, return_dict=True)
            if use_cache:
                caches.keep(index, output)
            return {"logits": output.logits.narrow(1, -logits_to_keep, logits_to_keep)}

        inputs = ((input_ids,), dict(shared, logits_to_keep=logits_to_keep))
        scores = self._ensemble.run_members(step, inputs, self._new_fold)["logits"]
        return CausalLMOutputWithPast(logits=scores, past_key_values=caches if use_cache else None)  # type: ignore[arg-type]

    __call__ = forward

    def prepare_inputs_for_generation(self, input_ids: Tensor, *, inputs_embeds: Any = None, **kwargs: Any) -> Any:  # type: ignore[override]
        """Pass everything on: each member prepares its own inputs, on its own device."""
        return dict(kwargs, input_ids=input_ids, **({} if inputs_embeds is None else {"inputs_embeds": inputs_embeds}))

    def _prepare_generation_config(self, *args: Any, **kwargs: Any) -> tuple[GenerationConfig, dict[str, Any]]:
        config, model_kwargs = super()._prepare_generation_config(*args, **kwargs)  # type: ignore[misc]
        check_config(config, self._named)
        return config, model_kwargs

    def _validate_model_kwargs(self, model_kwargs: dict[str, Any]) -> None:
        check_inputs(model_kwargs, self._named)
        past = model_kwargs.get("past_key_values")
        if past is not None and not (isinstance(past, MemberCaches) and past.indices == self._members.keys()):
            raise ValueError(
                f"generate: past_key_values ({type(past).__name__}): each member has a cache of its own; pass what "
                "generate(..., return_dict_in_generate=True) of this ensemble returned"
            )

    def _prepare_cache_for_generation(  # type: ignore[override]
        self, generation_config: GenerationConfig, model_kwargs: dict[str, Any], *args: Any
    ) -> None:
        """Make each member's cache as its own ``generate`` would."""
        if model_kwargs.get("past_key_values") is not None or generation_config.use_cache is False:
            return
        encoded = model_kwargs.get("encoder_outputs", {})
        held: dict[int, dict[str, Any]] = {}
        for index, member in self._members.items():
            member.__dict__.pop("_cache", None)  # a static one that an earlier call left
            own = {"encoder_outputs": encoded[index]} if encoded else {}
            member._prepare_cache_for_generation(copy.deepcopy(generation_config), own, *args)
            member.__dict__.pop("_cache", None)  # it is this call's, not the next one's too
            held[index] = {name: cache for name, cache in own.items() if name != "encoder_outputs"}
        model_kwargs["past_key_values"] = MemberCaches(held)

    def _prepare_encoder_decoder_kwargs_for_generation(
        self, inputs_tensor: Tensor, model_kwargs: dict[str, Any], *args: Any
    ) -> dict[str, Any]:
        """Run each member's encoder, once; its output stays on the member's device."""
        encoded: dict[int, Any] = {}

        def encode(index: int, member: Any, inputs: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            done = member._prepare_encoder_decoder_kwargs_for_generation(*inputs, kwargs, *args)
            encoded[index] = done["encoder_outputs"]

        self._ensemble.run_members(encode, ((inputs_tensor,), model_kwargs), self._new_fold)
        return dict(model_kwargs, encoder_outputs=encoded)

    def _expand_inputs_for_generation(  # type: ignore[override]
        self, expand_size: int = 1, is_encoder_decoder: bool = False, input_ids: Any = None, **kwargs: Any
    ) -> tuple[Tensor, dict[str, Any]]:
        """Repeat each row for its beams or return sequences, in each member's encoder output too."""
        repeat = partial(super()._expand_inputs_for_generation, expand_size)
        encoded = kwargs.pop("encoder_outputs", None)
        input_ids, kwargs = repeat(False, input_ids, **kwargs)
        if encoded is not None:
            kwargs["encoder_outputs"] = {
                index: repeat(True, encoder_outputs=output)[1]["encoder_outputs"] for index, output in encoded.items()
            }
        return input_ids, kwargs

    @contextmanager
    def _optimize_model_for_decode(self) -> Iterator[None]:
        with ExitStack() as stack:
            for member in self._members.values():
                stack.enter_context(member._optimize_model_for_decode())
            yield


def _unknown_inputs(member: Any) -> set[str]:
    """Name what the loop adds to a model's inputs only if its ``forward`` takes it, and this one's doesn't."""
    return {"attention_mask", "position_ids", "logits_to_keep"} - set(inspect.signature(member.forward).parameters)
