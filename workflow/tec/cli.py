"""The command `tec`."""

from __future__ import annotations

import argparse
import errno
import signal
import sys
from collections.abc import Sequence
from importlib import import_module

from tec.errors import TecError

# subcommand -> module whose register(sub) adds it; only the wanted module is imported
COMMANDS = {
    "source": "tec.source",
    "patches": "tec.patches",
    "build": "tec.build",
    "check": "tec.selection",
    "schema": "tec.schema",
    "fetch": "tec.hub",
    "model": "tec.models",
    "system": "tec.system",
    "measure": "tec.measure",
    "parity": "tec.parity",
    "outcome": "tec.outcome",
    "trace": "tec.trace",
    "locality": "tec.locality_table",
    "tables": "tec.tables",
    "figures": "tec.figures",
    "paper": "tec.paper",
    "verify": "tec.verify",
}


def make_parser(commands: Sequence[str]) -> argparse.ArgumentParser:
    """Return the parser with the given subcommands; each sets `run`, called with the arguments."""
    parser = argparse.ArgumentParser(
        prog="tec", description="Temporal Expert Caching: patch, build, measure, check and report."
    )
    sub = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for module in dict.fromkeys(COMMANDS[command] for command in commands):
        import_module(module).register(sub)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand and return the exit status: 0, 2 for a TecError, 130 when interrupted.

    A request to terminate unwinds the stack, so that programs this one started are stopped too.
    """
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    arguments = list(sys.argv[1:] if argv is None else argv)
    wanted = [arguments[0]] if arguments and arguments[0] in COMMANDS else list(COMMANDS)
    options = make_parser(wanted).parse_args(arguments)
    try:
        options.run(options)
    except TecError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        full = TecError(
            "the disk or your quota on it is full", error.filename, "free some space and run again"
        )
        print(f"error: {full}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; run the same command again to continue", file=sys.stderr)
        return 130
    return 0
