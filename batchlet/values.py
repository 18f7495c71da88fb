"""How the values of options are read: each function takes what was given and gives what is meant, or raises `ValueError`.

What each needs is its docstring, which users are shown.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Mapping
from typing import Any

__all__ = [
    "LEAST_WORKER_MEMORY",
    "TRUTH",
    "choice",
    "class_name",
    "count",
    "count_or_none",
    "describe_bytes",
    "filled_text",
    "flag",
    "headroom",
    "lines",
    "mapping",
    "memory",
    "parse_bytes",
    "quorum",
    "seconds",
    "size_of_memory",
]

# The same meaning as in Dask: "GB" and "G" are 10**9 bytes, "GiB" is 2**30.
_UNITS = {"": 1, "b": 1} | {
    letter + suffix: base ** (power + 1)
    for power, letter in enumerate("kmgtp")
    for suffix, base in (("", 1000), ("b", 1000), ("ib", 1024))
}
_SECONDS = {"": 1.0, "s": 1.0, "sec": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
LEAST_WORKER_MEMORY = 1 << 20


def parse_bytes(text: str) -> int:
    """Read a size such as ``"4GiB"``, ``"500 MB"`` or ``"4294967296"``, in the units of Dask.

    Returns
    -------
    int
        Bytes.

    Raises
    ------
    ValueError
        If the text is no size.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([a-zA-Z]*)\s*", text)
    if match is None or match[2].lower() not in _UNITS:
        raise ValueError(text)
    return int(float(match[1]) * _UNITS[match[2].lower()])


def describe_bytes(size: float) -> str:
    """Write a size for people: three significant digits, binary units (``"1.50 GiB"``)."""
    for power, unit in ((4, "TiB"), (3, "GiB"), (2, "MiB"), (1, "KiB")):
        if size >= 1024**power:
            number = size / 1024**power
            return f"{number:.{max(0, 2 - int(math.log10(number)))}f} {unit}"
    return f"{size:.0f} B"


def count(value: object) -> int:
    """A whole number of at least 1."""
    number = _number(value, int)
    if number < 1:
        raise ValueError
    return int(number)


def _number(value: object, kind: type[int | float]) -> float:
    # bool is an int to Python, but `workers_per_node=True` is a mistake.
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise ValueError
    number = kind(value)
    if number != number or math.isinf(number) or (kind is int and isinstance(value, float) and value != number):
        raise ValueError
    return number


def headroom(value: object) -> float:
    """A fraction of at least 0 and below 1."""
    number = _number(value, float)
    if not 0 <= number < 1:
        raise ValueError
    return number


def seconds(value: object) -> float:
    """A time above 0 in seconds, or with a unit: 120, "90s", "2 min", "4h"."""
    if isinstance(value, str):
        match = re.fullmatch(r"\s*([\d.]+)\s*([a-z]*)\s*", value.lower())
        if match is None or match[2] not in _SECONDS:
            raise ValueError
        value = float(match[1]) * _SECONDS[match[2]]
    number = _number(value, float)
    if number <= 0:
        raise ValueError
    return number


def memory(value: object) -> int | float | None:
    """Bytes as `int`, a fraction of the node's usable memory as `float`, "auto" as `None`."""
    if isinstance(value, str):
        if value.strip().lower() == "auto":
            return None
        value = float(value) if re.fullmatch(r"\s*[01]?\.\d*\s*", value) else parse_bytes(value)
    if isinstance(value, float):
        if 0 < value <= 1:
            return value
        if value != int(value):
            raise ValueError
    size = int(_number(value, int))
    if size < LEAST_WORKER_MEMORY:
        raise ValueError
    return size


def quorum(value: object) -> int | float:
    """A number of workers of at least 1 as `int`, or a fraction of all of them as `float`."""
    if isinstance(value, str):
        value = float(value) if "." in value else int(value)
    if isinstance(value, float) and 0 < value <= 1:
        return value
    return count(value)


TRUTH = {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}


def flag(value: object) -> bool:
    """Whether: true or false."""
    if isinstance(value, str):
        value = TRUTH[value.strip().lower()]
    if not isinstance(value, bool):
        raise ValueError
    return value


def filled_text(value: object) -> str:
    """A text that is not empty."""
    text = os.fspath(value) if isinstance(value, os.PathLike) else value
    if not isinstance(text, str) or not text.strip():
        raise ValueError
    return text


def size_of_memory(value: object) -> int:
    """A size of at least 1 MiB, in bytes or with a unit: 8589934592, "8GiB"."""
    size = memory(value)
    if not isinstance(size, int):
        raise ValueError
    return size


def count_or_none(value: object) -> int:
    """A whole number of at least 0."""
    return count(value) if value not in (0, "0") else 0


def lines(value: object) -> tuple[str, ...]:
    """A list of texts, as JSON in a variable or flag: '["module load python"]'."""
    if isinstance(value, str):
        value = json.loads(value) if value.lstrip().startswith("[") else [value]
    if not isinstance(value, (list, tuple)) or not all(isinstance(line, str) for line in value):
        raise ValueError
    return tuple(value)


def mapping(value: object) -> dict[str, Any]:
    """A dict of keyword arguments, as JSON in a variable or flag: '{"key": 1}'."""
    if isinstance(value, str):
        value = json.loads(value)
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise ValueError
    # A copy: what the caller passed is never changed.
    return dict(value)


def class_name(value: object) -> str | type:
    """A class, or its dotted name: "dask_cuda.CUDAWorker"."""
    if isinstance(value, type):
        return value
    text = filled_text(value)
    if not all(part.isidentifier() for part in text.split(".")) or "." not in text:
        raise ValueError
    return text


def choice(*allowed: str) -> Callable[[object], str]:
    """Give a function that takes one of these texts."""

    def choose(value: object) -> str:
        if value not in allowed:
            raise ValueError
        return str(value)

    choose.__doc__ = "One of " + ", ".join(f'"{name}"' for name in allowed) + "."
    return choose
