"""Saving an ensemble to a folder and loading it again.

The folder holds ``ensemble.json`` (`manifest`), and for each member its weights as safetensors and its config. `write`
goes one way, `read` the other, by `members`; `folder` puts a new save in the place of an old one at once, and `source`
finds it. `weights` takes a member's tensors out and puts them in; `rebuild` makes transformers models from their
configs, and `recipe` finds the ensemble's own class and reducer by their names. Nothing is ever unpickled, and no class
is imported because a file says so.
"""

from __future__ import annotations

from fusion_ensemble_plugin.saving.members import SavedMembers, load_member
from fusion_ensemble_plugin.saving.read import load
from fusion_ensemble_plugin.saving.write import save

__all__ = ["SavedMembers", "load", "load_member", "save"]
