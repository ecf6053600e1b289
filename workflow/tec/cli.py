"""The command `tec`."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from importlib import import_module

from tec.errors import TecError, disk_is_full

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
    "calibrate": "tec.calibrate",
    "calibration": "tec.calibration_table",
    "locality": "tec.locality_table",
    "tables": "tec.tables",
    "figures": "tec.figures",
    "paper": "tec.paper",
    "verify": "tec.verify",
    "reference": "tec.reference",
    "history": "tec.history_command",
    "regress": "tec.regress",
    "rerun": "tec.rerun",
    "pack": "tec.pack",
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
    """Run one subcommand and return the exit status: 0, 2 for an error, 130 when interrupted.

    A subcommand whose answer is a status, such as `regress`, returns it.

    A request to terminate unwinds the stack, so that programs this one started are stopped too.
    """
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    arguments = list(sys.argv[1:] if argv is None else argv)
    wanted = [arguments[0]] if arguments and arguments[0] in COMMANDS else list(COMMANDS)
    options = make_parser(wanted).parse_args(arguments)
    try:
        status: int | None = options.run(options)
        sys.stdout.flush()
    except TecError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader, such as `head`, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        print(f"error: {_explained(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; run the same command again to continue", file=sys.stderr)
        return 130
    return status or 0


def _explained(error: OSError) -> TecError:
    """Return what the system said about a file or a connection as one message."""
    if disk_is_full(error):
        what, hint = "the disk or your quota on it is full", "free some space and run again"
        return TecError(what, error.filename, hint)
    return TecError(error.strerror or str(error) or type(error).__name__, error.filename)
