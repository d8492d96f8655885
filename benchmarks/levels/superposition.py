"""Levels of superposition."""

from __future__ import annotations

from levels.case import Case

CASES: list[Case] = []
