"""The rule for the paper's text: a number comes from a claim and is never typed."""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Iterator, Mapping
from pathlib import Path

from tec.claims import ClaimsFile, references
from tec.errors import TecError
from tec.nearest import suggestion

# What is not prose: comments, code, claims, references and labels.
_NOT_PROSE = re.compile(
    r"""//[^\n]*
      | /\*.*?\*/
      | `[^`]*`
      | \#claim\("[^"]*"\)
      | @[\w-]+
      | <[\w-]+>
    """,
    re.VERBOSE | re.DOTALL,
)
_WORD_WITH_DIGIT = re.compile(r"[^\s\[\](){}#*_~,;:]*\d[^\s\[\](){}#*_~,;:]*")
_CLAIM = re.compile(r"""\bclaim\("([\w-]+)"\)|\bclaims\.([\w-]+)\.(?:value|text)""")


def check_prose(
    sections: Mapping[Path, str], layout: Iterable[str], definitions: ClaimsFile
) -> None:
    """Check the paper's source.

    Args:
        sections: text by file; numbers in it have to be claims.
        layout: Typst code, which may hold lengths and also uses claims.
        definitions: paper/claims.yaml.

    Raises:
        TecError: a number is typed, a claim is used but not defined, or defined but not used.
    """
    problems = [
        f"{path.name}, line {line}: '{word}' is typed"
        for path, text in sections.items()
        for line, word in typed_numbers(text, definitions.allowed)
    ]
    if problems:
        raise TecError(
            "numbers in the paper's text have to come from claims:\n  " + "\n  ".join(problems),
            hint='define a claim in claims.yaml and write #claim("name")',
        )
    used = {name for text in (*sections.values(), *layout) for name in claims_in(text)}
    for name in sorted(used - definitions.claims.keys()):
        raise TecError(
            f"the paper uses an undefined claim '{name}'",
            "claims.yaml",
            suggestion(name, definitions.claims),
        )
    used |= {name for claim in definitions.claims.values() for name in references(claim)}
    for name in sorted(definitions.claims.keys() - used):
        raise TecError(f"the claim '{name}' is not used", "claims.yaml", "remove it")


def typed_numbers(text: str, allowed: Container[str]) -> Iterator[tuple[int, str]]:
    """Yield line number and word for every word with a digit that is not allowed."""
    prose = _NOT_PROSE.sub(lambda found: "\n" * found[0].count("\n"), text)
    for number, line in enumerate(prose.splitlines(), start=1):
        for found in _WORD_WITH_DIGIT.finditer(line):
            word = found[0].strip(".!?\"'")
            if word not in allowed:
                yield number, word


def claims_in(text: str) -> Iterator[str]:
    """Yield the names of the claims that the text uses."""
    for found in _CLAIM.finditer(text):
        yield found[1] or found[2]
