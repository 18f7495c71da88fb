"""What the user asked for: keyword, else ``BATCHLET_DASK_CLUSTER__<NAME>``, else the default; each with its source.

`Settings` is the one definition of every option: the runner's keywords, the environment variables, the flags of
``python -m batchlet`` and the table in the documentation are all made from its fields.
"""

from __future__ import annotations

import difflib
import json
import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from . import entry_points
from .errors import SettingsError

__all__ = [
    "LEAST_WORKER_MEMORY",
    "LOG_LEVELS",
    "MODES",
    "PREFIX",
    "SWITCH_VALUES",
    "Settings",
    "describe_bytes",
    "parse_bytes",
]

PREFIX = "BATCHLET_DASK_CLUSTER__"
#: What `mode` can be without any other package.
MODES = ("auto", "mpi", "slurm", "allocation", "local")
RENDEZVOUS = ("auto", "file", "mpi")
LOG_LEVELS = ("debug", "info", "warning", "error")

# The same meaning as in Dask: "GB" and "G" are 10**9 bytes, "GiB" is 2**30.
_UNITS = {"": 1, "b": 1} | {
    letter + suffix: base ** (power + 1)
    for power, letter in enumerate("kmgtp")
    for suffix, base in (("", 1000), ("b", 1000), ("ib", 1024))
}
_SECONDS = {"": 1.0, "s": 1.0, "sec": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}
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


def _count(value: object) -> int:
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


def _headroom(value: object) -> float:
    """A fraction of at least 0 and below 1."""
    number = _number(value, float)
    if not 0 <= number < 1:
        raise ValueError
    return number


def _seconds(value: object) -> float:
    """A time above 0 in seconds, or with a unit: 120, "90s", "2 min"."""
    if isinstance(value, str):
        match = re.fullmatch(r"\s*([\d.]+)\s*([a-z]*)\s*", value.lower())
        if match is None or match[2] not in _SECONDS:
            raise ValueError
        value = float(match[1]) * _SECONDS[match[2]]
    number = _number(value, float)
    if number <= 0:
        raise ValueError
    return number


def _memory(value: object) -> int | float | None:
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


def _quorum(value: object) -> int | float:
    """A number of workers of at least 1 as `int`, or a fraction of all of them as `float`."""
    if isinstance(value, str):
        value = float(value) if "." in value else int(value)
    if isinstance(value, float) and 0 < value <= 1:
        return value
    return _count(value)


_TRUTH = {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}


def _flag(value: object) -> bool:
    """Whether: true or false."""
    if isinstance(value, str):
        value = _TRUTH[value.strip().lower()]
    if not isinstance(value, bool):
        raise ValueError
    return value


def _text(value: object) -> str:
    """A text that is not empty."""
    text = os.fspath(value) if isinstance(value, os.PathLike) else value
    if not isinstance(text, str) or not text.strip():
        raise ValueError
    return text


def _options(value: object) -> dict[str, Any]:
    """A dict of keyword arguments, as JSON in a variable or flag: '{"key": 1}'."""
    if isinstance(value, str):
        value = json.loads(value)
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise ValueError
    # A copy: what the caller passed is never changed.
    return dict(value)


def _class(value: object) -> str | type:
    """A class, or its dotted name: "dask_cuda.CUDAWorker"."""
    if isinstance(value, type):
        return value
    text = _text(value)
    if not all(part.isidentifier() for part in text.split(".")) or "." not in text:
        raise ValueError
    return text


def _choice(*allowed: str) -> Callable[[object], str]:
    def choose(value: object) -> str:
        if value not in allowed:
            raise ValueError
        return str(value)

    choose.__doc__ = "One of " + ", ".join(f'"{name}"' for name in allowed) + "."
    return choose


class _UnusableError(ValueError):
    """A value that cannot be used, where what is needed instead depends on more than the option."""


def _mode(value: object) -> str:
    """Name of an environment: of one of ours, or of one that another package has brought."""
    if value in MODES:
        return str(value)
    others = entry_points.found(entry_points.ENVIRONMENTS)
    if value not in others:
        raise _UnusableError("One of " + ", ".join(f'"{name}"' for name in (*MODES, *others)))
    return str(value)


def _auto_or_flag(value: object) -> str:
    """One of "auto", True, False."""
    return "auto" if value == "auto" else str(_flag(value)).lower()


def _security(value: object) -> object:
    """One of True, False, a `distributed.Security`."""
    return value if hasattr(value, "get_connection_args") else _flag(value)


#: What an option that is on or off may be given as on a command line; given as nothing it is on.
SWITCH_VALUES = (*_TRUTH, "auto")


def _option(parse: Callable[[object], Any], default: Any, text: str) -> Any:
    metadata = {"parse": parse, "help": text, "switch": parse in (_flag, _auto_or_flag, _security)}
    if isinstance(default, dict):
        return field(default_factory=dict, metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Settings:
    """Everything a user can ask for. Made by `Settings.resolve`, which checks each value.

    The help text of each field is its documentation; ``python -m batchlet --help`` prints them all.
    """

    mode: str = _option(_mode, "auto", "how to start: auto finds out from the environment")
    workers_per_node: int | None = _option(_count, None, "workers on each node (default: one per worker rank)")
    threads_per_worker: int | None = _option(
        _count, None, "threads of each worker (default: its share of the node's CPUs)"
    )
    memory_per_worker: int | float | None = _option(
        _memory,
        None,
        "memory limit of each worker: auto, bytes, 4GiB, or a fraction of the node's usable memory (0.25)",
    )
    memory_headroom_frac: float = _option(
        _headroom, 0.0, "part of each node's memory that Batchlet leaves alone, 0 to below 1"
    )
    colocate: str = _option(
        _auto_or_flag,
        "auto",
        "whether the ranks of the scheduler and the client also host workers: auto, true or false",
    )
    share_node: bool = _option(
        _flag,
        True,
        "whether one process of each node hosts the workers of all its ranks; ranks with GPUs or limits of their own never do",
    )
    min_workers: int | float | None = _option(
        _quorum, None, "go on with this many workers (or this fraction: 0.9) if not all are there at the deadline"
    )
    start_timeout: float = _option(_seconds, 120.0, "seconds until all workers must have joined")
    stop_timeout: float = _option(
        _seconds, 15.0, "seconds that stopping may take before processes are ended the hard way"
    )
    grace: float = _option(
        _seconds, 20.0, "seconds that the script has to end by itself after SIGTERM or Ctrl-C (Slurm's KillWait is 30)"
    )
    scheduler_timeout: float = _option(
        _seconds, 60.0, "seconds that the scheduler's process may be unresponsive before the run ends"
    )
    rendezvous: str = _option(
        _choice(*RENDEZVOUS), "auto", "how the ranks find each other: auto, file, or mpi (in memory, through mpi4py)"
    )
    rendezvous_dir: str = _option(
        _text, ".batchlet", "directory on a file system that all nodes share, in which the ranks meet"
    )
    security: object = _option(
        _security,
        True,
        "TLS between all processes and a secret dashboard address: true, false, or a distributed.Security",
    )
    timeline: bool = _option(_flag, False, "whether to print at the end what took how long at the start")
    interface: str | None = _option(_text, None, "network interface to use, such as ib0 (default: the node's own name)")
    protocol: str | None = _option(_text, None, "Dask's protocol, such as tcp")
    local_directory: str | None = _option(
        _text, None, "node-local scratch for spilled data (default: $SLURM_TMPDIR, $TMPDIR or the temporary directory)"
    )
    scheduler_options: Mapping[str, Any] = _option(_options, {}, "keyword arguments for Dask's Scheduler, as JSON")
    worker_options: Mapping[str, Any] = _option(_options, {}, "keyword arguments for Dask's Worker, as JSON")
    worker_class: str | type | None = _option(_class, None, "class to use instead of Dask's Worker, by its dotted name")
    sources: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def resolve(cls, keywords: Mapping[str, object], environ: Mapping[str, str]) -> Settings:
        """Settle every option: a keyword wins over the environment, which wins over the default.

        Parameters
        ----------
        keywords : mapping of str to object
            What the caller passed. `None` means "not given".
        environ : mapping of str to str
            The environment; ``BATCHLET_DASK_CLUSTER__<NAME>`` variables are read from it.

        Raises
        ------
        SettingsError
            If a name is unknown or a value is not one that the option can have.
        """
        options = {option.name: option for option in fields(cls) if option.metadata}
        _refuse_unknown(keywords, environ, list(options))
        values: dict[str, Any] = {}
        sources: dict[str, str] = {}
        for name, option in options.items():
            variable = PREFIX + name.upper()
            if keywords.get(name) is not None:
                given, source = keywords[name], f"{name}="
            elif variable in environ:
                given, source = environ[variable], variable
            else:
                sources[name] = "default"
                continue
            parse = option.metadata["parse"]
            try:
                values[name] = parse(given)
            except (ValueError, TypeError, KeyError, OverflowError) as error:
                text = str(error) if isinstance(error, _UnusableError) else parse.__doc__ or ""
                needed = " ".join(text.split()).rstrip(".")
                raise SettingsError(
                    f"{_shown(name, given, source)} cannot be used. Needed: {needed[:1].lower()}{needed[1:]}."
                ) from None
            sources[name] = source
        settings = cls(**values, sources=sources)
        if not getattr(settings.security, "require_encryption", True):
            raise SettingsError(
                "security= is a Security object that does not require encryption, which would leave the run open to everybody. "
                f"Say so with security=False ({PREFIX}SECURITY=false), make it with require_encryption=True, or leave it out."
            )
        if settings.security is not False and settings.protocol not in (None, "tls", "tls://"):
            shown = _shown("protocol", settings.protocol, sources["protocol"])
            raise SettingsError(
                f"{shown} does not encrypt, but security is on. Add security=False ({PREFIX}SECURITY=false) if nobody "
                "else uses the network and the nodes, or leave the protocol out."
            )
        return settings


def _shown(name: str, value: object, source: str) -> str:
    return f"{source if source.startswith(PREFIX) else name}={value!r}"


def _refuse_unknown(keywords: Mapping[str, object], environ: Mapping[str, str], known: list[str]) -> None:
    for given, prefix, names in (
        (keywords, "", known),
        ([name for name in environ if name.startswith(PREFIX)], PREFIX, [name.upper() for name in known]),
    ):
        for name in given:
            bare = name[len(prefix) :]
            if bare in names:
                continue
            near = difflib.get_close_matches(bare.upper() if prefix else bare, names, n=1, cutoff=0.0)[0]
            what = "environment variable" if prefix else "keyword"
            raise SettingsError(f"Unknown {what} {name}. Did you mean {prefix}{near}?")
