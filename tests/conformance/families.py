"""All families, in the order of the matrix."""

from __future__ import annotations

from . import (
    clip_vision,
    convnext_heads,
    flan_t5,
    gpt2_classification,
    image_classification,
    lm_eval_harness,
    nyuv2,
    openclip,
    reward_model,
)
from .family import Family

FAMILIES: list[Family] = [
    clip_vision.FAMILY,
    openclip.FAMILY,
    *image_classification.FAMILIES,
    convnext_heads.FAMILY,
    gpt2_classification.FAMILY,
    reward_model.FAMILY,
    flan_t5.FAMILY,
    lm_eval_harness.FAMILY,
    nyuv2.FAMILY,
]
