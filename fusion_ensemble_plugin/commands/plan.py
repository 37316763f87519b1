"""Plan a cluster before it is rented: what spreading members over ranks takes and brings, by arithmetic alone."""

from __future__ import annotations

import argparse
import sys

from fusion_ensemble_plugin.commands.table import table
from fusion_ensemble_plugin.distributed.cost import Plan
from fusion_ensemble_plugin.memory import parse_bytes, show_bytes

HELP = "print each rank's memory, the bytes on the wire and the ideal speed-up of member_parallel"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Take the members, the machines, and what is known of batches."""
    size = _bytes
    parser.add_argument("--members", type=int, required=True, help="how many members")
    parser.add_argument("--ranks", type=int, required=True, help="how many processes, one a device or machine")
    parser.add_argument("--bytes", type=size, required=True, help="of one member's weights, such as 350MB")
    parser.add_argument("--team", type=int, help="how many ranks share the members (method.member_parallel); all")
    parser.add_argument(
        "--devices", type=int, default=1, help="devices of each rank, over which its members are spread"
    )
    parser.add_argument("--input", type=size, default=0, help="bytes of a rank's batch")
    parser.add_argument("--output", type=size, default=0, help="bytes of what a member makes of it")
    parser.add_argument(
        "--whole", action="store_true", help="the reducer needs all outputs at once (median, trimmed mean)"
    )
    parser.add_argument("--seconds", type=float, help="that one member takes for one batch")
    parser.add_argument("--bandwidth", type=size, default=parse_bytes("1GB"), help="bytes a second between ranks; 1GB")
    parser.add_argument("--latency", type=float, default=1e-4, help="seconds between ranks; 0.0001")


def run(arguments: argparse.Namespace) -> int:
    """Print the plan.

    Returns:
        0, or 2 if the numbers are no layout.
    """
    try:
        plan = Plan(
            members=arguments.members,
            ranks=arguments.ranks,
            team=arguments.team or arguments.ranks,
            member_bytes=arguments.bytes,
            input_bytes=arguments.input,
            output_bytes=arguments.output,
            devices=arguments.devices,
            whole=arguments.whole,
        )
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    teams = plan.ranks // plan.team
    title = f"{plan.members} members over {plan.ranks} ranks, {teams} x {plan.team}"
    print(table(title, _rows(plan, arguments.seconds, arguments.bandwidth, arguments.latency)))
    return 0


def _rows(plan: Plan, seconds: float | None, bandwidth: int, latency: float) -> list[tuple[str, str]]:
    rows = [
        ("members on a rank, at most", str(plan.held)),
        ("weights on a rank", show_bytes(plan.weights)),
        ("weights on one of its devices", show_bytes(plan.largest_device)),
        ("inputs and outputs on a rank", show_bytes(plan.batches)),
        ("weights in one process with all", show_bytes(plan.members * plan.member_bytes)),
        ("sent by a rank in a forward", show_bytes(plan.sent)),
        ("on the wire in a forward", show_bytes(plan.wire)),
        ("ideal speed-up over one process", f"{plan.ideal_speedup * min(plan.devices, plan.held):.2f}"),
    ]
    if seconds is not None:
        took = plan.seconds(seconds, bandwidth, latency)
        rows += [
            ("seconds a forward", f"{took:.4g}"),
            ("speed-up over one process", f"{plan.speedup(seconds, bandwidth, latency):.2f}"),
        ]
    return rows


def _bytes(text: str) -> int:
    try:
        return parse_bytes(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
