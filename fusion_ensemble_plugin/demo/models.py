"""The benchmark's tiny CLIP, before training: configuration, tokenizer and image processor."""

from __future__ import annotations

import math
from typing import Any

from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer

IMAGE = 32
"""Pixels on a side of a picture."""
TOKENS = 48
"""The longest prompt, in bytes and the two special tokens."""
START, END = "<|startoftext|>", "<|endoftext|>"


def new_clip() -> CLIPModel:
    """Return the untrained model; its weights come from torch's random state."""
    tokenizer = new_tokenizer()
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": TOKENS,
        "projection_dim": 48,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = {
        "hidden_size": 96,
        "intermediate_size": 192,
        "num_hidden_layers": 4,
        "num_attention_heads": 3,
        "image_size": IMAGE,
        "patch_size": 8,
        "projection_dim": 48,
    }
    whole: dict[str, Any] = {
        "text_config": text,
        "vision_config": vision,
        "projection_dim": 48,
        "logit_scale_init_value": math.log(30),
        "initializer_factor": 4.0,
    }
    return CLIPModel(CLIPConfig(**whole))


def new_tokenizer() -> CLIPTokenizer:
    """Return a CLIP tokenizer without merges: each byte is a token, another one at the end of a word."""
    alphabet = sorted(ByteLevel.alphabet())
    tokens = [*alphabet, *(f"{letter}</w>" for letter in alphabet), START, END]
    return CLIPTokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=[], model_max_length=TOKENS)


def new_processor() -> CLIPProcessor:
    """Return what makes model inputs from pictures and prompts."""
    square = {"height": IMAGE, "width": IMAGE}
    images = CLIPImageProcessor(
        size=square, crop_size=square, do_center_crop=False, image_mean=[0.5] * 3, image_std=[0.25] * 3
    )
    return CLIPProcessor(image_processor=images, tokenizer=new_tokenizer())
