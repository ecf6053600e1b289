import json
from pathlib import Path

import pytest

from tec.claims import Bases, Claim, resolve_claims
from tec.errors import TecError

TABLE = """row,arm,capacity,hit_rate,speedup
a,off,,,
a,cached-c8,8,0.5125,
a,cached-c24,24,0.875,
b,cached-c8,8,0.25,
"""


@pytest.fixture
def bases(tmp_path: Path) -> Bases:
    (tmp_path / "results" / "tables").mkdir(parents=True)
    (tmp_path / "results" / "tables" / "main.csv").write_text(TABLE)
    records = [{"round": n, "system": {"cpu": "X", "gpus": ["first"]}} for n in range(3)]
    lines = "".join(json.dumps(record) + "\n" for record in records)
    (tmp_path / "results" / "a.jsonl").write_text(lines)
    (tmp_path / "card.json").write_text('{"size": {"bytes": 2097152}}')
    return Bases(results=tmp_path / "results", repository=tmp_path)


def text_of(bases: Bases, **claims: object) -> dict[str, str | None]:
    resolved = resolve_claims(
        {name: Claim.model_validate(fields) for name, fields in claims.items()}, bases
    )
    return {name: claim.text for name, claim in resolved.items()}


def claim(field: str, **more: object) -> dict[str, object]:
    return {"file": "tables/main.csv", "field": field, **more}


def test_value_is_scaled_formatted_and_given_its_unit(bases: Bases) -> None:
    hits = claim(
        "hit_rate", where={"arm": "cached-c8", "row": "a"}, scale=100, format=".1f", unit=" %"
    )
    assert text_of(bases, hits=hits) == {"hits": "51.2 %"}


def test_claims_refer_to_claims_further_up(bases: Bases) -> None:
    texts = text_of(
        bases,
        row=claim("row", pick="last"),
        hits=claim("hit_rate", where={"row": "@row"}),
    )
    assert texts == {"row": "b", "hits": "0.25"}


def test_file_name_may_hold_a_claim(bases: Bases) -> None:
    texts = text_of(
        bases,
        row=claim("row", pick="first"),
        rounds={"file": "{row}.jsonl", "field": "round", "pick": "count"},
        cpu={"file": "{row}.jsonl", "field": "system.cpu", "pick": "first"},
        gpu={"file": "{row}.jsonl", "field": "system.gpus.0", "pick": "first"},
    )
    assert texts == {"row": "a", "rounds": "3", "cpu": "X", "gpu": "first"}


def test_nearest_leaves_out_entries_without_a_value(bases: Bases) -> None:
    assert text_of(bases, c=claim("capacity", where={"row": "a"}, nearest={"capacity": 20})) == {
        "c": "24"
    }


@pytest.mark.parametrize(
    ("pick", "text"), [("min", "0.25"), ("max", "0.88"), ("median", "0.51"), ("sum", "1.64")]
)
def test_numbers_over_entries(bases: Bases, pick: str, text: str) -> None:
    (bases.results / "tables" / "main.csv").write_text(TABLE.replace("a,off,,,\n", ""))
    hits = claim("hit_rate", pick=pick, format=".2f")
    assert text_of(bases, hits=hits) == {"hits": text}


def test_count_of_nothing_is_zero(bases: Bases) -> None:
    assert text_of(bases, n=claim("row", where={"row": "c"}, pick="count")) == {"n": "0"}


def test_empty_cell_is_found_by_an_empty_text(bases: Bases) -> None:
    assert text_of(bases, arm=claim("arm", where={"capacity": ""})) == {"arm": "off"}


def test_star_stands_for_any_value_that_is_there(bases: Bases) -> None:
    hits = claim("hit_rate", where={"row": "a", "hit_rate": "*"}, pick="count")
    assert text_of(bases, n=hits) == {"n": "2"}


def test_file_of_an_optional_claim_may_be_missing(bases: Bases) -> None:
    there = {"file": "tables/none.csv", "field": "row", "pick": "first", "optional": True}
    assert text_of(bases, there=there) == {"there": None}
    with pytest.raises(TecError, match="file not found"):
        text_of(bases, there=there | {"optional": False})


def test_optional_claim_may_be_empty(bases: Bases) -> None:
    gpu = {"file": "a.jsonl", "field": "system.gpus.1", "pick": "first", "optional": True}
    speedup = claim("speedup", where={"row": "b"}, optional=True)
    assert text_of(bases, s=speedup, g=gpu) == {"s": None, "g": None}


def test_repository_files_and_text_formats(bases: Bases) -> None:
    size = {"base": "repository", "file": "card.json", "field": "size.bytes", "scale": 2**-20}
    assert text_of(bases, size=size | {"format": ".1f", "unit": " MiB"}) == {"size": "2.0 MiB"}
    assert text_of(bases, arm=claim("arm", pick="first", format=".2")) == {"arm": "of"}


def test_optional_claims_without_a_value_pass_that_on(bases: Bases) -> None:
    texts = text_of(
        bases,
        arm=claim("arm", where={"row": "c"}, optional=True),
        hits=claim("hit_rate", where={"arm": "@arm"}, optional=True),
    )
    assert texts == {"arm": None, "hits": None}


def test_item_of_a_list_stands_for_the_next_one(bases: Bases) -> None:
    line = {"command": ["tool", "-c", "512", "--last"]}
    (bases.results / "b.jsonl").write_text(json.dumps(line) + "\n")
    assert text_of(bases, size={"file": "b.jsonl", "field": "command.-c"}) == {"size": "512"}
    with pytest.raises(TecError, match="no field"):
        text_of(bases, last={"file": "b.jsonl", "field": "command.--last"})


def test_source_says_file_field_and_selection(bases: Bases) -> None:
    fields = claim("hit_rate", where={"row": "a"}, nearest={"capacity": 9}, pick="first")
    resolved = resolve_claims({"x": Claim.model_validate(fields)}, bases)
    assert resolved["x"].source == (
        "tables/main.csv: first of hit_rate where row = a, capacity nearest 9"
    )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"file": "tables/none.csv", "field": "row"}, "file not found"),
        (claim("hit_rat", pick="first"), "no field 'hit_rat'"),
        (claim("row", where={"rwo": "a"}), "no field 'rwo'"),
        (claim("row", where={"row": "c"}), "no entry matches"),
        (claim("hit_rate", where={"row": "a"}), "3 entries match"),
        (claim("speedup", where={"row": "b"}), "the value is missing"),
        (claim("row", pick="max"), "'a' is not a number"),
        (claim("row", where={"row": "@other"}), "'other', which is not a claim further up"),
        (claim("row", pick="first", format=".1f"), "cannot write 'a' as '.1f'"),
        ({"file": "tables/main.tex", "field": "row"}, "cannot read a '.tex' file"),
    ],
)
def test_what_is_wrong_is_named(bases: Bases, fields: dict[str, object], message: str) -> None:
    with pytest.raises(TecError) as caught:
        text_of(bases, broken=fields)
    assert "claim 'broken'" in str(caught.value)
    assert message in str(caught.value)


def test_missing_column_names_the_nearest_one(bases: Bases) -> None:
    with pytest.raises(TecError, match="did you mean 'hit_rate'"):
        text_of(bases, broken=claim("hit_rat", pick="first"))
