import pytest

from tec.errors import TecError
from tec.perplexity import parse_divergence, parse_reference
from tec.process import Finished
from tec.records import Process

# as printed by the pinned llama-perplexity; its log lines are cut into each other
REFERENCE = """0.29 minutes
[1]314.9674,[2]317.0806,
0.10.689.912 I perplexity: 10.41 seconds per pass - ETA 0.29.005.974 I \
Final estimate: PPL = 314.2689 +/- 6.24856
"""
DIVERGENCE = """====== Perplexity statistics ======
Mean PPL(Q)                   : 314.268896 ±   6.248561
Mean PPL(base)                : 314.268890 ±   6.248555
Cor(ln(PPL(Q)), ln(PPL(base))): 100.00%
Mean ln(PPL(Q)/PPL(base))     :   0.000000 ±       -nan

====== KL divergence statistics ======
Mean    KLD:  -0.000000 ±   0.000000
Maximum KLD:   0.000009
99.9%   KLD:   0.000009

====== Token probability statistics ======
Same top p: 100.000 ± 0.000 %
"""
TOO_SHORT = """
0.00.282.106 I perplexity: tokenizing the input ..
0.00.283.504 E perplexity: the data file you provided tokenizes to only 12 tokens
"""


def finished(stdout: str = "", stderr: str = "") -> Finished:
    return Finished(stdout, stderr, Process(exit_code=0, wall=1.0, peak_rss=1))


def test_reference_is_read_from_either_stream() -> None:
    for output in (finished(stdout=REFERENCE), finished(stderr=REFERENCE)):
        assert parse_reference(output) == {
            "ppl": 314.2689,
            "ppl_error": 6.24856,
            "lines": ["Final estimate: PPL = 314.2689 +/- 6.24856"],
        }


def test_divergence_is_read_past_uncertainties_that_are_no_numbers() -> None:
    result = parse_divergence(finished(DIVERGENCE))
    assert (result["ppl"], result["ppl_reference"]) == (314.268896, 314.26889)
    assert (result["kl_mean"], result["kl_max"], result["same_top"]) == (0, 0.000009, 100)
    assert "Mean    KLD:  -0.000000 ±   0.000000" in result["lines"]


def test_text_too_short_is_an_error_although_the_tool_exits_well() -> None:
    with pytest.raises(TecError, match="only 12 tokens") as caught:
        parse_reference(finished(stderr=TOO_SHORT))
    assert "1024 tokens" in str(caught.value)


def test_missing_and_undefined_statistics_are_errors() -> None:
    with pytest.raises(TecError, match="kl_mean"):
        parse_divergence(finished(DIVERGENCE.split("====== KL")[0]))
    with pytest.raises(TecError, match="no ppl"):
        parse_divergence(finished(DIVERGENCE.replace("314.268896", "      -nan")))
