"""The headline in the README: what studies `replicas` and `policies` measured, as it is kept."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from tec.errors import TecError
from tec.files import write_atomically
from tec.reference_index import INDEX
from tec.table import digits, percent, times

BEGIN = "<!-- headline: written by `tec reference rebuild` -->"
END = "<!-- end of the headline -->"
_STUDY, _POLICIES = "replicas", "policies"
_HEADER = (
    "| slots | VRAM GiB | stock engine's best | tok/s | TEC tok/s | speed-up | hits "
    "| of resident | of the bound | bits equal |\n"
    "| --- | ---: | --- | ---: | ---: | --- | ---: | ---: | ---: | --- |\n"
)
_WIDTHS = (420, 840)
"""Pixels of the figure: with one row, with several."""
_NONE = "\N{EN DASH}"

Line = Mapping[str, str]


def headline(reference: Path) -> str:
    """Return the block of Markdown, with its marks, from the index and tables of what is kept.

    It has a table for every row that study `replicas` measured on a graphics card, and the figure
    of study `policies`.

    Args:
        reference: the folder of what is kept.
    """
    index = _lines(reference / INDEX) if (reference / INDEX).is_file() else []
    measured = [line for line in index if line["evidence"] == "gpu"]
    parts = [_system(x, reference / x["folder"]) for x in measured if x["study"] == _STUDY]
    policies = [_policies(x, reference / x["folder"]) for x in measured if x["study"] == _POLICIES]
    return "\n".join([BEGIN, *(parts or ["Nothing is kept yet.\n"]), *policies, END])


def write_headline(reference: Path, readme: Path) -> None:
    """Put the headline in its place in the README."""
    before, _, after = _divided(readme)
    write_atomically(readme, before + headline(reference) + after)


def headline_differs(reference: Path, readme: Path) -> bool:
    """Say whether the README has another headline than what is kept gives."""
    return _divided(readme)[1] != headline(reference)


def _divided(readme: Path) -> tuple[str, str, str]:
    """Return what stands before the headline, the headline, and what comes after."""
    text = readme.read_text(encoding="utf-8")
    begin, end = text.find(BEGIN), text.find(END)
    if begin < 0 or end < begin:
        raise TecError("the marks of the headline are missing", readme, f"add {BEGIN} and {END}")
    end += len(END)
    return text[:begin], text[begin:end], text[end:]


def _system(kept: Line, folder: Path) -> str:
    """Return what a system's rows came to, a table each."""
    models = {line["row"]: line for line in _lines(folder / "tables" / "rows.csv")}
    lines = _lines(folder / "tables" / "headline.csv")
    where = f"results/reference/{kept['folder']}"
    width = _WIDTHS[len(models) > 1]
    pcie = f"PCIe {kept['pcie_gen']}.0 x{kept['pcie_width']}, " if kept["pcie_gen"] else ""
    intro = (
        f"{kept['device']}, {pcie}llama.cpp {kept['llama_cpp']}: "
        f"[tables]({where}/tables), [figures]({where}/figures), "
        f"[raw records]({where}/runs).\n\n"
        f'<p align="center"><img src="{where}/figures/speed.svg" width="{width}"\n'
        '  alt="Decoding speed against the VRAM that every arm had"></p>\n\n'
    )
    tables = [
        _row(models[row], [line for line in lines if line["row"] == row])
        for row in dict.fromkeys(line["row"] for line in lines)
    ]
    return intro + "\n".join(tables)


def _policies(kept: Line, folder: Path) -> str:
    """Return the figure that says which policy to use when."""
    where = f"results/reference/{kept['folder']}"
    rows = {line["row"] for line in _lines(folder / "tables" / "policies.csv")}
    width = _WIDTHS[len(rows) > 1]
    return (
        f"Which policy when, on {kept['device']}: [table]({where}/tables/policies.md). "
        "With `lru` the bits are those of the whole model in VRAM, with `hot` and `hybrid` not.\n\n"
        f'<p align="center"><img src="{where}/figures/policies.svg" width="{width}"\n'
        '  alt="Decoding speed by policy, with slots for a part of the experts"></p>\n'
    )


def _row(model: Line, lines: Sequence[Line]) -> str:
    resident = lines[0]["resident_tps"]
    ceiling = f"all of it in VRAM: {_text(resident, 4)} tok/s" if resident else "larger than VRAM"
    title = (
        f"**{model['title']}**, generated weights, {_text(model['size_gib'], 3)} GiB, "
        f"{model['n_expert']} experts a layer; {ceiling}; {lines[0]['rounds']} rounds\n\n"
    )
    return title + _HEADER + "".join(map(_cells, lines))


def _cells(line: Line) -> str:
    cells = (
        f"{line['capacity']} ({100 * float(line['capacity_share']):.3g} %)",
        _text(line["vram_limit_gib"], 3),
        f"`{line['baseline_option']}`" if line["baseline_option"] else _NONE,
        _text(line["baseline_tps"], 3),
        _text(line["tec_tps"], 3),
        _speedup(line),
        *(_share(line[key]) for key in ("hit_rate", "resident_share", "bound_share")),
        _bits(line),
    )
    return f"| {' | '.join(cells)} |\n"


def _text(number: str, significant: int) -> str:
    return digits(significant)(number) if number else _NONE


def _share(number: str) -> str:
    return f"{percent(number)} %" if number else _NONE


def _speedup(line: Line) -> str:
    if not line["speedup"]:
        return _NONE
    ends = [f"{float(line[key]):.2f}" for key in ("speedup_lo", "speedup_hi") if line[key]]
    return times(line["speedup"]) + (f" [{', '.join(ends)}]" if ends else "")


def _bits(line: Line) -> str:
    """Say at which numbers of sequences decoded together the bits were equal, and where not."""
    if line["batches_unequal"]:
        return f"**differ** at {_listed(line['batches_unequal'])}"
    return f"at batch {_listed(line['batches_equal'])}" if line["batches_equal"] else "not checked"


def _listed(numbers: str) -> str:
    return ", ".join(numbers.split())


def _lines(path: Path) -> list[Line]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))
