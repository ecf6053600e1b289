from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tec.claims import Claim, ClaimsFile
from tec.errors import TecError
from tec.paths import PAPER
from tec.prose import check_prose, claims_in, typed_numbers
from tec.yaml_file import load_yaml

ROW = Claim(file="tables/main.csv", field="row", pick="first")


def check(text: str, **claims: Claim) -> None:
    check_prose({Path("a.typ"): text}, [], ClaimsFile(claims=claims))


@given(st.decimals(allow_nan=False, allow_infinity=False, places=2))
def test_a_typed_number_is_found_wherever_it_stands(number: object) -> None:
    text = f"It hits\nabout {number}% of them."
    assert [line for line, _ in typed_numbers(text, {})] == [2]


@pytest.mark.parametrize(
    "text",
    [
        '#claim("hits") of them',
        "see @fig-1 <sec-2> // 3 of 4",
        "run `-ncmoe 99` /* 5\n6 */ then",
        "no number at all",
    ],
)
def test_claims_code_references_and_comments_are_not_typed_numbers(text: str) -> None:
    assert list(typed_numbers(text, {})) == []


def test_words_of_the_allow_list_pass() -> None:
    assert list(typed_numbers("the (95th) percentile.", {"95th": "a percentile"})) == []


def test_a_number_in_a_string_or_a_call_is_typed() -> None:
    assert [word for _, word in typed_numbers('#strong("87.5") and "12"', {})] == ["87.5", "12"]


def test_error_names_file_line_and_word() -> None:
    with pytest.raises(TecError, match=r"a\.typ, line 2: '4\.2-fold' is typed"):
        check("fast:\n4.2-fold")


def test_undefined_and_unused_claims_are_errors() -> None:
    with pytest.raises(TecError, match="undefined claim 'rwo'"):
        check('#claim("rwo")', row=ROW)
    with pytest.raises(TecError, match="claim 'row' is not used"):
        check("nothing", row=ROW)


def test_a_claim_that_another_one_starts_from_is_used() -> None:
    hits = Claim(file="tables/main.csv", field="hit_rate", where={"row": "@row"})
    check('#claim("hits")', row=ROW, hits=hits)


def test_claims_are_found_in_text_and_layout() -> None:
    text = '#claim("a") #raw(claim("b")) #if claims.c.value == 1 [] #claims.at("d")'
    assert list(claims_in(text)) == ["a", "b", "c"]


def test_the_paper_itself_types_no_number() -> None:
    definitions = load_yaml(PAPER / "claims.yaml", ClaimsFile)
    sections = {path: path.read_text() for path in (PAPER / "sections").glob("*.typ")}
    assert sections
    check_prose(sections, [path.read_text() for path in PAPER.glob("*.typ")], definitions)
