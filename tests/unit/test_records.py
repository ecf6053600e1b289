import json
from pathlib import Path

import pytest

from fake_study import apart_in, make_session, make_steps
from tec.errors import TecError
from tec.measure import prompts_plan
from tec.records import Record, read_partial, read_records, schemas


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The content of a file of records."""
    folder = tmp_path_factory.mktemp("records")
    with apart_in(folder):
        maker = make_steps(folder)
        made = make_session(folder, maker, "prompts")
        made.run(prompts_plan(maker)[:3], wait=0)
    return made.kept.read_bytes()


@pytest.fixture
def path(tmp_path: Path, written: bytes) -> Path:
    path = tmp_path / "runs.jsonl"
    path.write_bytes(written)
    return path


def test_records_read_back_as_they_were_written(path: Path, written: bytes) -> None:
    again = [record.model_dump_json(by_alias=True).encode() for record in read_records(path)]
    assert b"\n".join([*again, b""]) == written


def test_result_is_the_tools_own_line(path: Path) -> None:
    line = json.loads(path.read_text().splitlines()[0])
    assert line["schema"] == 1
    assert line["result"]["tool"] == "llama-expert-bench"
    assert len(line["result"]["prompts"][0]["token_ns"]) == 8


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda text: text[:-1], "torn"),
        (lambda text: text[: len(text) // 2], "torn"),
        (lambda text: text.replace(b'"round":0', b'"round":-1', 1), "round"),
        (lambda text: text.replace(b'"row"', b'"rwo"', 1), "row"),
        (lambda text: text.replace(b'"schema":1', b'"schema":2', 1), "schema"),
        (lambda text: b"{}\n" + text, "study"),
        (lambda text: b"\n" + text, "JSON"),
    ],
)
def test_damage_is_found_and_the_line_named(path: Path, damage: object, message: str) -> None:
    assert callable(damage)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(TecError, match=message) as caught:
        read_records(path)
    assert str(path) in str(caught.value)
    assert ", line " in str(caught.value)


def test_partial_file_loses_its_torn_line_only(path: Path, written: bytes) -> None:
    path.write_bytes(written[:-5])
    assert len(read_partial(path)) == 2
    assert written.startswith(path.read_bytes())
    assert read_partial(path.with_name("absent")) == []


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(TecError, match="No such file"):
        read_records(tmp_path / "absent.jsonl")


def test_schema_states_units() -> None:
    schema = schemas()["record"]
    process = schema["$defs"]["Process"]["properties"]
    assert process["wall"]["unit"] == "s"
    assert process["peak_rss"]["unit"] == "B"
    assert "schema" in schema["properties"]
    assert schema["additionalProperties"] is False
    assert set(schema["required"]) <= set(Record.model_json_schema()["properties"])
