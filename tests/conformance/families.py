"""All families, in the order of the matrix."""

from __future__ import annotations

from . import clip_vision, convnext_heads, flan_t5, gpt2_classification, image_classification, nyuv2
from .family import Family

FAMILIES: list[Family] = [
    clip_vision.FAMILY,
    *image_classification.FAMILIES,
    convnext_heads.FAMILY,
    gpt2_classification.FAMILY,
    flan_t5.FAMILY,
    nyuv2.FAMILY,
]
