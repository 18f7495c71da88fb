"""Reading a report back: a file that is none is refused by a sentence that says what stands there instead."""

from __future__ import annotations

import importlib.resources
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import UsageError

__all__ = ["FORMAT", "NAME", "departure", "read"]

#: The form of a report that this version writes and reads.
FORMAT = "batchlet-report/1"
#: What a report is called in its directory.
NAME = "report.json"
# Bytes: a report of hundreds of nodes and days has ten.
_MOST = 256 << 20
# No run has as many bytes or seconds; what is made from larger numbers is none.
_LARGEST = 1e18
_KINDS: Mapping[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "null": (type(None),),
}


def read(place: Path) -> dict[str, Any]:
    """Read a report.

    Parameters
    ----------
    place : Path
        The file, or a directory with one (``report.json``).

    Raises
    ------
    UsageError
        If there is none, or what there is does not have the form of one.
    """
    file = place / NAME if place.is_dir() else place
    try:
        with file.open("rb") as opened:
            content = opened.read(_MOST + 1)
    except FileNotFoundError:
        raise UsageError(f"There is no report {file}.{_others(place)}") from None
    except OSError as error:
        raise UsageError(f"The report {file} cannot be read: {error.strerror or error}.") from None
    if len(content) > _MOST:
        raise UsageError(f"{file} is no report of Batchlet: it is larger than {_MOST >> 20} MiB.")
    try:
        found = json.loads(content, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{file} is no report of Batchlet: it is not JSON ({error}). {_needed()}") from None
    form = found.get("format") if isinstance(found, dict) else None
    if form != FORMAT:
        said = f"its format is {form!r:.80}" if form is not None else "it does not say `format`"
        raise UsageError(f"{file} is no report that this version of Batchlet reads: {said}. {_needed()}")
    schema = json.loads(importlib.resources.files(__package__).joinpath("schema.json").read_text("utf-8"))
    if problem := departure(found, schema):
        raise UsageError(f"{file} is no report of Batchlet: {problem}. {_needed()}")
    return dict(found)


def _needed() -> str:
    return f"Needed: the {NAME} of a run with --report, format {FORMAT}."


def _others(place: Path) -> str:
    """Name the reports that stand one directory below."""
    folder = place if place.is_dir() else place.parent
    try:
        below = sorted(str(path) for path in folder.glob(f"*/{NAME}"))
    except OSError:
        return ""
    return f" There is {', '.join(below[:5])}{' and more' if len(below) > 5 else ''}." if below else ""


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is no number")


def departure(value: Any, schema: Mapping[str, Any], where: str = "it") -> str | None:
    """Say where a value departs from a schema; `None` where it does not.

    Knows those words of JSON Schema that ``schema.json`` uses. Properties that it does not name are let through, so that a
    report of a later version can be read.

    Parameters
    ----------
    value : object
        What `json.loads` gives.
    schema : mapping
        The schema.
    where : str
        What the value is called.
    """
    for choice in schema.get("anyOf", ()):
        if departure(value, choice, where) is None:
            return None
    if "anyOf" in schema:
        return departure(value, schema["anyOf"][-1], where)
    if "const" in schema and value != schema["const"]:
        return f"{where} is {value!r:.60}, not {schema['const']!r}"
    if "enum" in schema and value not in schema["enum"]:
        return f"{where} is {value!r:.60}, none of {', '.join(map(repr, schema['enum']))}"
    kinds = schema.get("type", [])
    kinds = [kinds] if isinstance(kinds, str) else kinds
    if kinds and not any(_is(value, kind) for kind in kinds):
        return f"{where} is {value!r:.60}, not of type {' or '.join(kinds)}"
    if "minimum" in schema and isinstance(value, (int, float)) and value < schema["minimum"]:
        return f"{where} is {value}, less than {schema['minimum']}"
    if isinstance(value, dict):
        return _departure_of_object(value, schema, where)
    if isinstance(value, list):
        return _departure_of_array(value, schema, where)
    return None


def _is(value: Any, kind: str) -> bool:
    if isinstance(value, bool):
        return kind == "boolean"
    # 1e999 is JSON, and infinity to Python.
    return isinstance(value, _KINDS.get(kind, ())) and not (
        isinstance(value, (int, float)) and not abs(value) <= _LARGEST
    )


def _departure_of_object(value: Mapping[str, Any], schema: Mapping[str, Any], where: str) -> str | None:
    for name in schema.get("required", ()):
        if name not in value:
            return f"{where} lacks `{name}`"
    known = schema.get("properties", {})
    others = schema.get("additionalProperties", True)
    for name, item in value.items():
        own = known.get(name, others if isinstance(others, dict) else {})
        if problem := departure(item, own, name if where == "it" else f"{where}.{name}"):
            return problem
    return None


def _departure_of_array(value: Sequence[Any], schema: Mapping[str, Any], where: str) -> str | None:
    first = schema.get("prefixItems", ())
    if len(value) < schema.get("minItems", 0):
        return f"{where} has {len(value)} entries, not {schema['minItems']}"
    rest = schema.get("items", {})
    for position, item in enumerate(value):
        own = first[position] if position < len(first) else rest
        if own is False:
            return f"{where} has {len(value)} entries, not {len(first)}"
        if own is not True and (problem := departure(item, own, f"{where}[{position}]")):
            return problem
    return None
