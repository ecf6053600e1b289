"""Groups of tokens that follow each other in text: they make a miniature's routing last.

The embeddings of a group's tokens point the same way (`tec.miniature_weights`), and so the tokens
select experts in common. Where neighbours in a text are of one group more often than by chance,
experts come back because of what was said before, and not only because they are wanted often.

The groups are learned from the held-out text, all but its beginning. The beginning, other
documents, is what the routing of a miniature is measured on (`tec.miniature_check`).
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tec.build import Manifest
from tec.miniature_file import TOKENIZER
from tec.miniature_key import TEXT
from tec.miniature_weights import Groups
from tec.process import run_tool

Tokens = NDArray[np.int64]
"""Ids of a text's tokens, in order."""

GROUPS = 16

_CHECKED = 2600
"""Characters at the beginning of the text that nothing is learned from."""
_ROUNDS = 30
_MOVED = 0.3
"""Share of the tokens that may change their group in a round: all at once, neighbours swap."""
_SEED = 1


def checked_text() -> str:
    """Return the text on which the routing of miniatures is measured."""
    return TEXT.read_text(encoding="utf-8")[:_CHECKED]


def token_groups(n_vocab: int, manifest: Manifest, log: Path) -> Groups:
    """Return the groups of a vocabulary's tokens.

    Args:
        n_vocab: tokens of the vocabulary.
        manifest: the build whose tool splits the text into tokens.
        log: where its output goes.

    Raises:
        TecError: the tool fails.
    """
    text = TEXT.read_text(encoding="utf-8")[_CHECKED:]
    return learn(_tokenize(text, manifest.bin_dir / "llama-tokenize", log), n_vocab)


def learn(tokens: Tokens, n_vocab: int) -> Groups:
    """Return groups with as many pairs of neighbours as possible beyond those chance would give.

    That is the modularity (Newman and Girvan, 2004) of the graph in which two tokens are joined as
    often as one follows the other. What chance gives, the sum of the groups' squared shares of the
    text, is subtracted, so that one large group of frequent tokens is worth nothing. From drawn
    groups on, tokens move to the group where they add most; those that the text does not have stay
    where they were drawn. All sums are of integers, and so the same on every machine.

    Args:
        tokens: of a text.
        n_vocab: tokens of the vocabulary.
    """
    rng = np.random.Generator(np.random.SFC64(_SEED))
    groups = rng.integers(GROUPS, size=n_vocab)
    one, other = tokens[:-1], tokens[1:]
    differ = one != other  # a token is in its own group wherever it moves
    joined = np.concatenate([one[differ], other[differ]])
    to = np.concatenate([other[differ], one[differ]])
    degree = np.bincount(joined, minlength=n_vocab)
    everyone = np.arange(n_vocab)
    for _ in range(_ROUNDS):
        pairs = np.bincount(joined * GROUPS + groups[to], minlength=n_vocab * GROUPS)
        sizes = np.zeros(GROUPS, dtype=np.int64)
        np.add.at(sizes, groups, degree)
        gain = pairs.reshape(n_vocab, GROUPS) * len(joined) - np.outer(degree, sizes)
        gain[everyone, groups] += degree**2  # a token does not count as its own neighbour
        best = gain.argmax(axis=1)
        better = gain[everyone, best] > gain[everyone, groups]
        groups = np.where(better & (rng.random(n_vocab) < _MOVED), best, groups)
    return groups


def _tokenize(text: str, tool: Path, log: Path) -> Tokens:
    """Return the text's tokens as llama.cpp gives them."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "text.txt")
        file.write_text(text, encoding="utf-8")
        command = [tool, "-m", TOKENIZER, "-f", file, "--ids", "--log-disable"]
        printed = run_tool([str(word) for word in command], {}, log).stdout
    return np.array(json.loads(printed), dtype=np.int64)
