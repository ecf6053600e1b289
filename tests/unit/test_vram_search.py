"""The search for the most layers that fit."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tec.vram_search import Found, most_that_fit


class Loader:
    """Remembers what was tried; a number is tried once."""

    def __init__(self, loads: Callable[[int], bool]) -> None:
        self.loads = loads
        self.tried: list[int] = []

    def __call__(self, number: int) -> bool:
        assert number not in self.tried
        self.tried.append(number)
        return self.loads(number)


@given(st.integers(0, 60), st.integers(-5, 70), st.integers(-1, 61))
def test_it_finds_the_largest_that_fits_from_any_estimate(
    highest: int, estimate: int, limit: int
) -> None:
    loader = Loader(lambda number: number <= limit)
    found = most_that_fit(estimate, highest, loader)
    assert found.value == (min(limit, highest) if limit >= 0 else None)
    assert found.refused == (None if limit >= highest else max(limit, -1) + 1)
    assert all(0 <= number <= highest for number in loader.tried)
    if found.refused is not None:
        assert found.refused in loader.tried
    if found.value is not None:
        assert found.value in loader.tried


@pytest.mark.parametrize("estimate", [19, 20, 21])
def test_an_estimate_off_by_one_takes_two_or_three_loads(estimate: int) -> None:
    loader = Loader(lambda number: number <= 20)
    assert most_that_fit(estimate, 48, loader) == Found(20, 21)
    assert len(loader.tried) == (3 if estimate == 19 else 2)


def test_far_estimates_take_few_loads() -> None:
    loader = Loader(lambda number: number <= 40)
    assert most_that_fit(0, 1000, loader) == Found(40, 41)
    assert len(loader.tried) < 16


def test_nothing_fits() -> None:
    loader = Loader(lambda _: False)
    assert most_that_fit(5, 48, loader) == Found(None, 0)


def test_everything_fits() -> None:
    loader = Loader(lambda _: True)
    assert most_that_fit(48, 48, loader) == Found(48, None)
    assert loader.tried == [48]


@given(st.sets(st.integers(0, 30)), st.integers(0, 30))
def test_what_is_not_monotone_ends_where_one_more_does_not_load(
    fitting: set[int], estimate: int
) -> None:
    loader = Loader(lambda number: number in fitting)
    found = most_that_fit(estimate, 30, loader)
    if found.value is not None:
        assert found.value in fitting
        assert found.refused == (found.value + 1 if found.value < 30 else None)
    if found.refused is not None:
        assert found.refused not in fitting
