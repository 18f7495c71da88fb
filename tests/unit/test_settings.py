"""Settings: keyword, else variable, else default; and what a value that cannot be used is told."""

from __future__ import annotations

import math
from dataclasses import fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchlet.errors import SettingsError
from batchlet.settings import PREFIX, Settings, describe_bytes, parse_bytes

OPTIONS = {option.name: option for option in fields(Settings) if option.metadata}


def refusal(keywords=None, environ=None) -> str:
    """The message with which the input is refused."""
    with pytest.raises(SettingsError) as caught:
        Settings.resolve(keywords or {}, environ or {})
    message = str(caught.value)
    assert caught.value.code == 2
    assert "\n" not in message
    assert len(message) < 800
    return message


def test_nothing_given_leaves_every_default_and_says_so():
    settings = Settings.resolve({}, {"HOME": "/root", "BATCHLET_LOG_LEVEL": "debug"})
    assert settings.sources == dict.fromkeys(OPTIONS, "default")
    assert settings.memory_headroom_frac == 0
    assert settings.workers_per_node is settings.threads_per_worker is settings.memory_per_worker is None


def test_a_keyword_wins_over_the_variable_and_the_variable_over_the_default():
    environ = {PREFIX + "WORKERS_PER_NODE": "3", PREFIX + "THREADS_PER_WORKER": "5"}
    settings = Settings.resolve({"workers_per_node": 2}, environ)
    assert (settings.workers_per_node, settings.sources["workers_per_node"]) == (2, "workers_per_node=")
    assert (settings.threads_per_worker, settings.sources["threads_per_worker"]) == (5, PREFIX + "THREADS_PER_WORKER")
    assert settings.sources["start_timeout"] == "default"


def test_none_as_keyword_means_not_given():
    settings = Settings.resolve({"workers_per_node": None}, {PREFIX + "WORKERS_PER_NODE": "3"})
    assert settings.workers_per_node == 3


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("mode", "local", "local"),
        ("workers_per_node", "4", 4),
        ("threads_per_worker", " 2 ", 2),
        ("memory_per_worker", "4GiB", 4 << 30),
        ("memory_per_worker", "500 MB", 500_000_000),
        ("memory_per_worker", "1.5GiB", 3 << 29),
        ("memory_per_worker", "4294967296", 1 << 32),
        ("memory_per_worker", "0.25", 0.25),
        ("memory_per_worker", "1.0", 1.0),
        ("memory_per_worker", "AUTO", None),
        ("memory_headroom_frac", "0.25", 0.25),
        ("memory_headroom_frac", "0", 0.0),
        ("min_workers", "7", 7),
        ("min_workers", "0.9", 0.9),
        ("min_workers", "1.0", 1.0),
        ("start_timeout", "90", 90.0),
        ("start_timeout", "90s", 90.0),
        ("start_timeout", "2 min", 120.0),
        ("stop_timeout", "0.5", 0.5),
        ("interface", "ib0", "ib0"),
        ("scheduler_options", '{"idle_timeout": "1h"}', {"idle_timeout": "1h"}),
        ("worker_class", "dask_cuda.CUDAWorker", "dask_cuda.CUDAWorker"),
    ],
)
def test_a_variable_is_read_as_the_keyword_would_be(name, text, value):
    from_variable = getattr(Settings.resolve({}, {PREFIX + name.upper(): text}), name)
    from_keyword = getattr(Settings.resolve({name: text}, {}), name)
    assert from_variable == from_keyword == value
    assert type(from_variable) is type(value)


@pytest.mark.parametrize("value", [4 << 30, 0.5, 1.0])
def test_memory_may_be_a_number_of_bytes_or_a_fraction(value):
    assert Settings.resolve({"memory_per_worker": value}, {}).memory_per_worker == value


BAD = [
    *(("memory_headroom_frac", value, "fraction of at least 0 and below 1") for value in
      (1.5, -1, "abc", math.nan, True, 1, math.inf, "", "1e-1x", [0.5])),
    *(("workers_per_node", value, "whole number of at least 1") for value in
      (0, "0", -3, 1.5, "two", True, "", math.inf, math.nan, 10**400)),
    *(("threads_per_worker", value, "whole number of at least 1") for value in (0, "1.5", False, b"2")),
    *(("memory_per_worker", value, "fraction of the node's usable memory") for value in
      ("4 lightyears", "-1GiB", 0, 0.0, -0.5, 1.5, "1.5", True, math.nan, math.inf, "17", "9" * 400, "GiB", ".")),
    *(("min_workers", value, "at least 1") for value in (0, "0", 0.0, -1, 1.5, "most", True, math.inf, math.nan)),
    *(("start_timeout", value, "above 0") for value in
      (0, -1, "0", "1 fortnight", "soon", "1.2.3", math.nan, math.inf, True, 10**400)),
    *(("stop_timeout", value, "above 0") for value in (0, "")),
    ("mode", "pbs", '"local"'),
    ("mode", 3, '"auto"'),
    ("rendezvous", "carrier pigeon", '"file"'),
    ("rendezvous_dir", "", "not empty"),
    ("rendezvous_dir", 7, "not empty"),
    ("interface", "  ", "not empty"),
    ("scheduler_options", "{", "JSON"),
    ("scheduler_options", "[1]", "JSON"),
    ("worker_options", {1: 2}, "JSON"),
    ("worker_class", "Worker", "dotted name"),
    ("worker_class", "no such.Class", "dotted name"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value", "expected"), BAD, ids=lambda value: str(value)[:20])
def test_a_bad_keyword_is_refused_by_its_name_its_value_and_what_was_expected(name, value, expected):
    message = refusal({name: value})
    assert message.startswith(f"{name}={value!r} cannot be used.")
    assert expected in message


@pytest.mark.parametrize(
    ("name", "text", "expected"), [case for case in BAD if isinstance(case[1], str)], ids=lambda value: value[:20]
)
def test_a_bad_variable_is_refused_by_its_name_its_value_and_what_was_expected(name, text, expected):
    message = refusal(environ={PREFIX + name.upper(): text})
    assert message.startswith(f"{PREFIX}{name.upper()}={text!r} cannot be used.")
    assert expected in message


@pytest.mark.parametrize("text", ["1.5", "-1", "abc", "nan", "inf", "True", "4\nlightyears"])
def test_a_headroom_variable_that_is_no_fraction_is_refused_in_one_line(text):
    message = refusal(environ={PREFIX + "MEMORY_HEADROOM_FRAC": text})
    assert f"{PREFIX}MEMORY_HEADROOM_FRAC={text!r}" in message
    assert "at least 0 and below 1" in message


@pytest.mark.parametrize(
    ("given", "near"),
    [
        ("worker_per_node", "workers_per_node"),
        ("workers_pernode", "workers_per_node"),
        ("nthreads_per_worker", "threads_per_worker"),
        ("memory_worker", "memory_per_worker"),
        ("memory_headroom", "memory_headroom_frac"),
        ("start_time_out", "start_timeout"),
        ("scheduler_option", "scheduler_options"),
        ("Mode", "mode"),
    ],
)
def test_an_unknown_name_is_refused_and_the_nearest_known_one_is_shown(given, near):
    assert refusal({given: 1}) == f"Unknown keyword {given}. Did you mean {near}?"
    variable = PREFIX + given.upper()
    if given.upper() != near.upper():
        assert refusal(environ={variable: "1"}) == (
            f"Unknown environment variable {variable}. Did you mean {PREFIX}{near.upper()}?"
        )


def test_an_unknown_keyword_is_refused_even_if_it_is_none():
    assert "Unknown keyword nthreads" in refusal({"nthreads": None})


def test_a_variable_in_lower_case_is_refused_with_the_right_spelling():
    assert f"Did you mean {PREFIX}MODE?" in refusal(environ={PREFIX + "mode": "local"})


def test_what_the_caller_passed_is_not_changed_and_not_kept():
    passed = {"scheduler_options": {"port": 0}}
    settings = Settings.resolve(passed, {})
    settings.scheduler_options["port"] = 1
    assert passed == {"scheduler_options": {"port": 0}}


def test_settings_cannot_be_changed_afterwards():
    with pytest.raises(AttributeError):
        Settings.resolve({}, {}).workers_per_node = 2


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_has_a_help_text_and_says_what_it_accepts(name):
    assert OPTIONS[name].metadata["help"]
    assert (OPTIONS[name].metadata["parse"].__doc__ or "").strip()


def test_sizes_have_the_units_of_dask():
    from dask.utils import parse_bytes as dask_parse_bytes

    sizes = "1 7b 3k 3kB 3KiB 2MB 2M 2MiB 1.5G 1.5GB 1.5GiB .5TB 1TiB 1PB"
    for text in sizes.split():
        assert parse_bytes(text) == dask_parse_bytes(text), text


@pytest.mark.parametrize("text", ["", "GiB", "-1", "1e", "4 lightyears", "1 2", "0x10", "1,5GB", "nan"])
def test_what_is_no_size_is_a_value_error(text):
    with pytest.raises(ValueError):
        parse_bytes(text)


@given(st.integers(0, 1 << 50))
def test_a_size_shown_to_a_person_is_right_to_half_a_percent(size):
    assert parse_bytes(describe_bytes(size)) == pytest.approx(size, abs=5e-3 * size + 1)


@given(st.text(max_size=12), st.sampled_from(sorted(OPTIONS)))
def test_any_text_at_all_is_either_understood_or_refused_in_one_line(text, name):
    refused = ""
    try:
        Settings.resolve({}, {PREFIX + name.upper(): text})
    except SettingsError as error:
        refused = str(error)
    assert refused == "" or PREFIX + name.upper() in refused
    assert "\n" not in refused


def test_options_of_submitted_jobs_are_refused_where_no_jobs_are_submitted():
    assert refusal({"memory": "1GiB"}) == "Unknown keyword memory. Did you mean memory_per_worker?"
    assert refusal({"jobs": 2}).startswith("Unknown keyword jobs.")
    # A site's own variables may tell of jobs where a program needs none.
    assert Settings.resolve({}, {PREFIX + "MEMORY": "1GiB"}).memory == 1 << 30
    settings = Settings.resolve({"submit": "slurm", "memory": "1GiB", "setup_script_commands": "module load x"}, {})
    assert (settings.memory, settings.setup_script_commands) == (1 << 30, ("module load x",))
