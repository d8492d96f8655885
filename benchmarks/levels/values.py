"""Levels of values."""

from __future__ import annotations

from levels.case import Case

CASES: list[Case] = []
