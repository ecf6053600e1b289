"""Messages without paths, addresses and hosts of a machine."""

import pytest

from tec.paths import ROOT
from tec.portable_text import portable


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        (f"{ROOT}/configs/models/toy.yaml, line 3", "configs/models/toy.yaml, line 3"),
        (f"{ROOT}-old/a.yaml", "a.yaml"),
        (f"in {ROOT}: nothing", "in : nothing"),
        ("not found (/home/someone/.cache/huggingface/hub)", "not found (hub)"),
        ("No such file: '/home/me/my models/a.gguf'", "No such file: 'a.gguf'"),
        ("~/models/a.gguf is cut off", "a.gguf is cut off"),
        ("tool --model=/srv/a.gguf -o /tmp/x/", "tool --model=a.gguf -o x"),
        ("GET https://user:word@mirror.local:8080/api?x=1: 404", "GET URL: 404"),
        ("Pool(host='mirror.local', port=443)", "Pool(host=HOST, port=443)"),
        ("C/N at 3 tok/s, and/or models/a.gguf, 1 / 2", None),
        ("owner/name at main: ratio 1/2", None),
    ],
)
def test_only_names_of_a_machine_are_left_out(text: str, kept: str | None) -> None:
    assert portable(text) == (text if kept is None else kept)
