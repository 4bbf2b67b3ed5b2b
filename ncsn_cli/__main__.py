"""``python -m ncsn_cli train|sample|compare ...``: the commands, wherever the package is."""

from __future__ import annotations

import argparse
import sys

from ncsn_cli import __version__
from ncsn_cli.commands import cli
from ncsn_cli.commands.streams import forgive

_COMMANDS = {"train": cli.train, "sample": cli.sample, "compare": cli.compare}


def main() -> None:
    """Run the command that the first argument names on those that follow."""
    forgive()
    parser = argparse.ArgumentParser(
        prog="python -m ncsn_cli",
        usage="%(prog)s {train,sample,compare} ...",
        description="ncsn-train, ncsn-sample or ncsn-compare; --help after its name says more.",
    )
    parser.add_argument("command", choices=_COMMANDS, help="which of them")
    parser.add_argument("--version", action="version", version=f"ncsn_cli {__version__}")
    command = parser.parse_args(sys.argv[1:2]).command
    sys.argv[:2] = [f"{parser.prog} {command}"]  # so that commands shown are of this form
    _COMMANDS[command]()


if __name__ == "__main__":
    main()
