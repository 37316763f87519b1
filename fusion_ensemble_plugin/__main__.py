"""What this package can do besides ``fusion_bench method=ensemble/...``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

from fusion_ensemble_plugin import __version__
from fusion_ensemble_plugin.commands import COMMANDS


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: The words after the program's name; None for the process's own.

    Returns:
        The exit status: 0 if all is well.
    """
    parser = argparse.ArgumentParser(prog="python -m fusion_ensemble_plugin", description=__doc__)
    parser.add_argument("--version", action="version", version=f"fusion-ensemble-plugin {__version__}")
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
    for name in COMMANDS:
        command = import_module(f"fusion_ensemble_plugin.commands.{name}")
        subparser = subparsers.add_parser(name, help=command.HELP, description=command.__doc__)
        command.add_arguments(subparser)
        subparser.set_defaults(run=command.run)
    parsed = parser.parse_args(arguments)
    status: int = parsed.run(parsed)
    return status


if __name__ == "__main__":
    sys.exit(main())
