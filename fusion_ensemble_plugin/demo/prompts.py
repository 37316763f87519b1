"""Class names and prompt templates of the benchmark's tasks, in the form in which FusionBench reads them."""

from __future__ import annotations

from collections.abc import Callable

digits_classnames = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]

digits_templates: list[Callable[[str], str]] = [lambda c: f"a coarse scan of the digit {c}."]

faces_classnames = ["something else", "a face"]
faces_templates: list[Callable[[str], str]] = [lambda c: f"a grey picture of {c}."]

textures_classnames = ["brick", "grass", "gravel"]
textures_templates: list[Callable[[str], str]] = [lambda c: f"a close-up of {c}."]
