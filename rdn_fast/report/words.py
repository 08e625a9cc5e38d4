"""Text of the page: escaped, and numbers as people write them."""

from __future__ import annotations

import html
import math

from rdn_fast.terminal import printable


def words(text) -> str:
    """Return any text as HTML that is nothing but text, also within an attribute's quotes."""
    return html.escape(printable(str(text)))


def number(value: float) -> str:
    """Return a number with at most four digits after its first ones: 1,500, 0.0125, 2e-05; "–" for NaN."""
    if not math.isfinite(value):
        return "–"
    if value == round(value) and abs(value) < 1e9:
        return f"{value:,.0f}"
    return f"{value:,.1f}" if abs(value) >= 1e3 else f"{value:.4g}"


def decibels(value: float, sign: bool = False) -> str:
    """Return "33.67 dB"; "–" for NaN, "equal" for infinity."""
    if math.isnan(value):
        return "–"
    return "equal" if value == math.inf else f"{value:{'+' if sign else ''}.2f} dB"
