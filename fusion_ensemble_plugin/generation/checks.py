"""Which members can decode together."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterable, Mapping
from typing import Any, cast

from torch import nn
from transformers import GenerationConfig
from transformers.generation.utils import GenerationMixin

from fusion_ensemble_plugin.notes import add_note

TOKENS = ("eos_token_id", "pad_token_id", "bos_token_id", "decoder_start_token_id")

_MEMBERS_OWN = frozenset(
    {
        "prepare_inputs_for_generation",
        "_prepare_cache_for_generation",
        "_prepare_encoder_decoder_kwargs_for_generation",
        "_validate_model_kwargs",
        "_supports_default_dynamic_cache",
        "_optimize_model_for_decode",
    }
)
"""The parts of transformers' loop that an ensemble leaves to each member; all others it runs once for all."""

_OF_ONE_MODEL = ("output_attentions", "output_hidden_states", "assistant_early_exit")
"""Options about a model's layers, which an ensemble has none of."""


def can_generate(members: Iterable[nn.Module]) -> bool:
    """Say whether all of these models can take part in ensemble decoding."""
    return not any(map(_obstacle, members))


def check_members(members: Mapping[str, nn.Module], given: Collection[str] = ()) -> None:
    """Check that members, by name, can decode together.

    Args:
        members: Member name to model.
        given: Special tokens that the caller chose, so that the members' own don't matter.

    Raises:
        TypeError: If a member cannot generate; names each with the reason.
        ValueError: If the members differ in kind, vocabulary size or special tokens; the message lists every problem.
    """
    obstacles = [f"{name!r} ({obstacle})" for name, member in members.items() if (obstacle := _obstacle(member))]
    if obstacles:
        raise TypeError(f"generate: members that cannot: {', '.join(obstacles)}")
    problems = [
        _difference("kinds of model", {name: _kind(member) for name, member in members.items()}),
        _difference("vocab_size", {name: _vocabulary(member) for name, member in members.items()}),
        *(
            _difference(token, _tokens(members, token), f"pass {token}=... to choose one")
            for token in TOKENS
            if token not in given
        ),
    ]
    problems = [problem for problem in problems if problem]
    if problems:
        raise ValueError(f"generate: the members don't fit together: {'; '.join(problems)}")


def check_config(config: GenerationConfig, members: Mapping[str, Any]) -> None:
    """Check that the options of a call make sense for these members.

    Raises:
        ValueError: If not, naming the options.
    """
    wanted = [name for name in _OF_ONE_MODEL if getattr(config, name)]
    if wanted:
        raise ValueError(f"generate: {', '.join(wanted)}: an ensemble has no layers of its own; ask its members")
    if (config.num_beams or 1) == 1 or config.use_cache is False:
        return
    quantized = config.cache_implementation == "quantized"
    stuck = [
        f"{name!r} ({'quantized' if quantized else type(member).__name__})"
        for name, member in members.items()
        if quantized or not member._supports_default_dynamic_cache()
    ]
    if stuck:
        raise ValueError(
            f"generate: num_beams={config.num_beams}: the caches of these members cannot be reordered: "
            f"{', '.join(stuck)}. Pass num_beams=1, use_cache=False or another cache_implementation."
        )


def check_inputs(inputs: Mapping[str, Any], members: Mapping[str, Any]) -> None:
    """Check that every member takes the inputs that go to all.

    Raises:
        ValueError: A member's own error, with a note that names the member; or for encoder outputs, since each member
            has an encoder of its own.
    """
    if inputs.get("encoder_outputs") is not None:
        raise ValueError("generate: encoder_outputs: each member encodes for itself; pass what the encoders take")
    for name, member in members.items():
        try:
            member._validate_model_kwargs(dict(inputs))
        except ValueError as error:
            add_note(error, f"raised by ensemble member {name!r}")
            raise


def _obstacle(member: Any) -> str:
    """Say what keeps a member from taking part, or ""."""
    kind = type(member).__name__
    if not isinstance(member, GenerationMixin) or not cast(Any, member).can_generate():
        return f"{kind} has no language model head that transformers can generate with"
    replaced = [
        name
        for name, common in vars(GenerationMixin).items()
        if name not in _MEMBERS_OWN
        and not name.startswith("__")
        and inspect.getattr_static(type(member), name) is not common
    ]
    return f"{kind} has a {', '.join(replaced)} of its own" if replaced else ""


def _kind(member: Any) -> str:
    return "encoder-decoder" if member.config.is_encoder_decoder else "decoder-only"


def _vocabulary(member: Any) -> Any:
    return member.config.get_text_config().vocab_size


def _tokens(members: Mapping[str, Any], token: str) -> dict[str, Any]:
    """Return each member's special token or tokens; members that have none are left out."""
    values = {name: getattr(member.generation_config, token, None) for name, member in members.items()}
    return {
        name: tuple(sorted(value)) if isinstance(value, (list, tuple)) and len(value) != 1 else _single(value)
        for name, value in values.items()
        if value is not None
    }


def _single(value: Any) -> Any:
    return value[0] if isinstance(value, (list, tuple)) else value


def _difference(what: str, values: Mapping[str, Any], remedy: str = "") -> str:
    """Name the differing values and who has which, or return ""."""
    if len(set(values.values())) < 2:
        return ""
    holders: dict[Any, list[str]] = {}
    for name, value in values.items():
        holders.setdefault(value, []).append(repr(name))
    listed = " and ".join(f"{value} ({', '.join(names)})" for value, names in holders.items())
    return f"{what} {listed}" + (f" ({remedy})" if remedy else "")
