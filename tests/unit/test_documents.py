"""What the documents tell a newcomer to type exists."""

import re
import shlex

import pytest

from tec.cli import COMMANDS, make_parser
from tec.config import load_row, load_study
from tec.paths import ROOT

DOCUMENTS = ("README.md", "CONTRIBUTING.md")
TEXT = {name: (ROOT / name).read_text() for name in DOCUMENTS}


def commands() -> list[str]:
    """Return the calls of `tec`, in blocks and between backticks, without comments."""
    found: list[str] = []
    for text in TEXT.values():
        calls = re.findall(r"\.venv/bin/(?:tec|python -m tec) ([^`\n#]+)", text)
        found += [call.strip() for call in calls]
    return found


@pytest.mark.parametrize("command", commands())
def test_command_of_tec_is_one(command: str) -> None:
    make_parser(list(COMMANDS)).parse_args(shlex.split(command))


def test_there_are_commands() -> None:
    assert {"fetch", "trace", "build"} <= {command.split()[0] for command in commands()}


def test_chosen_rows_and_studies_exist() -> None:
    for text in TEXT.values():
        for study, rows in re.findall(r"STUDY=(\w+) .*?rows=([\w.,-]+)", text):
            assert set(rows.split(",")) <= set(load_study(study).all_rows)
        for rows in re.findall(r"rows=([\w.,-]+)", text):
            for row in rows.split(","):
                assert row == "NAME" or load_row(row).name == row


def test_files_that_the_documents_name_exist() -> None:
    folders = "configs|workflow|patches|paper|models"
    for name, text in TEXT.items():
        for path in re.findall(rf"`((?:{folders})/[\w./-]+\.\w+)`", text):
            assert (ROOT / path).exists(), f"{name}: {path}"
