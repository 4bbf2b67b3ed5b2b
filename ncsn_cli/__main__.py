"""``python -m ncsn_cli train|sample|measure|compare ...``: the commands, without their scripts."""

from __future__ import annotations

import argparse
import sys

from ncsn_cli import __version__
from ncsn_cli.commands import cli
from ncsn_cli.commands.streams import ignore_failed_writes

_COMMANDS = {
    "train": cli.train,
    "sample": cli.sample,
    "measure": cli.measure,
    "compare": cli.compare,
}


def main() -> None:
    """Run the command that the first argument names, with the arguments after it."""
    ignore_failed_writes()
    parser = argparse.ArgumentParser(
        prog="python -m ncsn_cli",
        usage="%(prog)s {train,sample,measure,compare} ...",
        description="Run one of the commands ncsn-...; add --help to see its options.",
    )
    parser.add_argument("command", choices=_COMMANDS, help="the command to run")
    parser.add_argument("--version", action="version", version=f"ncsn_cli {__version__}")
    command = parser.parse_args(sys.argv[1:2]).command
    sys.argv[:2] = [f"{parser.prog} {command}"]  # commands in messages then have this form
    _COMMANDS[command]()


if __name__ == "__main__":
    main()
