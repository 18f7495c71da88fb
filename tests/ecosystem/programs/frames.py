"""dask.dataframe: parquet, P2P shuffle, P2P merge, set_index, groupby."""

import tempfile

import dask
import dask.dataframe as dd
import numpy as np
import pandas as pd
from dask.distributed import Client


def main(client):
    dask.config.set({"dataframe.shuffle.method": "p2p"})
    rng = np.random.default_rng(1)
    left = pd.DataFrame({"key": rng.integers(0, 50, 2000), "value": rng.random(2000).round(3)})
    right = pd.DataFrame({"key": np.arange(50), "name": [f"n{number}" for number in range(50)]})
    with tempfile.TemporaryDirectory() as folder:
        dd.from_pandas(left, npartitions=6).to_parquet(f"{folder}/left")
        df = dd.read_parquet(f"{folder}/left")
        print(len(df), df.npartitions, list(df.columns))

        shuffled = df.shuffle("key")
        parts = shuffled.map_partitions(
            lambda part: pd.Series([sorted(set(part["key"]))]), meta=(None, object)
        ).compute()
        keys = [key for part in parts for key in part]
        print("shuffle", len(keys) == len(set(keys)) == 50)

        merged = df.merge(dd.from_pandas(right, npartitions=3), on="key", broadcast=False)
        means = merged.groupby("name")["value"].mean().compute().sort_index()
        print("merge", len(merged), means.round(4).head(3).to_dict())

        indexed = df.set_index("key")
        print("index", indexed.known_divisions, indexed.loc[10:12].value.sum().compute().round(3))


if __name__ == "__main__":
    client = Client()
    main(client)
