"""The commands of ``python -m fusion_ensemble_plugin``, one module each.

A command is a module here, named in `COMMANDS`, with a line of ``HELP``, ``add_arguments(parser)``, and
``run(arguments)``, which returns the exit status. What it needs it imports inside ``run``: every command's module is
imported for ``--help``.
"""

from __future__ import annotations

COMMANDS = ("plugins", "doctor", "plan")
"""The commands, in the order of ``--help``."""
