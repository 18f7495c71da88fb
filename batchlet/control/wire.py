"""How the messages of `batchlet.control.messages` are written: one JSON object a line.

A line that is no message of ours, or whose fields are not of the kind that its dataclass says, is `None` to who reads it; the
connection is then at its end. Fields that a dataclass does not have are ignored: a `Hello` of another version of Batchlet must
be understood far enough to be refused.
"""

from __future__ import annotations

import json
import re
import types
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from .messages import Message

__all__ = ["decode", "decode_object", "encode", "name_of"]


def name_of(cls: type[Message]) -> str:
    """Name of a kind of message on the wire: "report_failure"."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", cls.__name__).lower()


# What JSON makes of a field, by the first word of its annotation.
_SHAPES = {"str": str, "int": int, "Sequence": list, "Mapping": dict}


@dataclass(frozen=True)
class _Kind:
    """A kind of message, and for each of its fields what JSON makes of it."""

    cls: type[Message]
    shapes: Mapping[str, tuple[type, ...]]


def _kind(cls: type[Message]) -> _Kind:
    shapes: dict[str, tuple[type, ...]] = {}
    for entry in fields(cls):
        annotation = str(entry.type).replace("_Marks", "Sequence")
        shape = _SHAPES[re.split(r"\W", annotation)[0]]
        shapes[entry.name] = (shape, type(None)) if annotation.endswith("| None") else (shape,)
    return _Kind(cls, shapes)


_KINDS = types.MappingProxyType({name_of(cls): _kind(cls) for cls in Message.__subclasses__()})


def encode(message: Message, **more: Any) -> bytes:
    """Write a message as one line; `more` is for what the handshake adds to it."""
    return json.dumps({"op": name_of(type(message)), **asdict(message), **more}, separators=(",", ":")).encode() + b"\n"


def decode(line: bytes) -> Message | None:
    """Read a message; `None` if the line is none, or not whole."""
    found = decode_object(line)
    kind = _KINDS.get(str(found.pop("op", ""))) if found is not None else None
    if found is None or kind is None:
        return None
    known = {name: value for name, value in found.items() if name in kind.shapes}
    if not all(isinstance(value, kind.shapes[name]) for name, value in known.items()):
        return None
    try:
        return kind.cls(**known)
    except TypeError:
        # A field is missing that must be there.
        return None


def decode_object(line: bytes) -> dict[str, Any] | None:
    """Read a line as a JSON object."""
    try:
        found = json.loads(line) if line.endswith(b"\n") else None
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None
