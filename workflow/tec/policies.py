"""The policies of the expert cache: which experts have the slots, and what becomes of a miss."""

from __future__ import annotations

from typing import Literal

CachePolicy = Literal["lru", "hot", "hybrid"]

ON_CPU: tuple[CachePolicy, ...] = ("hot", "hybrid")
"""Policies with which the CPU computes misses. Its sums have another order than the device's, so
that outputs are not those of the resident model to the bit, unless nothing is missed."""

BY_TIME: tuple[CachePolicy, ...] = ("hybrid",)
"""Policies that choose by times measured at load: the next process need not choose the same."""
