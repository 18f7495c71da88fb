"""Text of others made fit to be shown: signs that a terminal or a page would obey, or could not write, become their numbers."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from typing import Any

__all__ = ["cleaned", "printable"]


def printable(text: str, keep: str = "\n\t") -> str:
    r"""Replace signs that cannot be seen: "\x1b[31m" becomes a text of six characters.

    Among them are the commands of terminals, marks that turn the direction of writing around, and halves of surrogate pairs.

    Parameters
    ----------
    text : str
        The text.
    keep : str
        Signs that may stay.
    """
    if text.isprintable():
        return text
    return "".join(
        sign
        if sign.isprintable() or sign in keep
        else " "
        if unicodedata.category(sign) == "Zs"
        else sign.encode("unicode_escape").decode("ascii")
        for sign in text
    )


def cleaned(value: Any) -> Any:
    """Copy a report with all its texts, those that are names included, made printable."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, Mapping):
        return {printable(name, keep=""): cleaned(item) for name, item in value.items()}
    if isinstance(value, list):
        return [item if isinstance(item, (int, float)) else cleaned(item) for item in value]
    return value
