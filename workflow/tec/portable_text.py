"""Messages without what belongs to one machine, for results that others read."""

from __future__ import annotations

import re
from pathlib import PurePath

from tec.paths import ROOT

_URL = re.compile(r"\b[a-z][a-z0-9+.-]*://[^\s'\"<>)]*[^\s'\"<>).,;:]", re.IGNORECASE)
_HOST = re.compile(r"\bhost=(?:'[^']*'|\"[^\"]*\"|[^\s,;)]+)")
_INSIDE = re.compile(rf"(?<![\w./~-]){re.escape(str(ROOT))}(?:/|(?![\w.-]))")
_QUOTED = re.compile(r"(?P<quote>['\"])~?/[^'\"\n]+(?P=quote)")
_PATH = re.compile(r"(?<![\w./~\\])~?/[^\s'\"<>(),;:]+")


def portable(text: str) -> str:
    """Return the text without absolute paths, addresses and names of hosts.

    A path in the repository becomes relative to its root; of any other path its last name stays. A
    path with spaces is recognised in the repository and in quotes.
    """
    text = _HOST.sub("host=HOST", _URL.sub("URL", text))
    text = _INSIDE.sub("", text)
    text = _QUOTED.sub(lambda found: _last_name(found[0][1:-1], found["quote"]), text)
    return _PATH.sub(lambda found: _last_name(found[0]), text)


def _last_name(path: str, quote: str = "") -> str:
    return f"{quote}{PurePath(path).name}{quote}"
