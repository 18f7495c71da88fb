"""xarray with zarr and netCDF, and dask.array's P2P rechunk.

netCDF through h5py, which locks: the netCDF4 package crashes in one of fifty runs, under plain Dask as well, where a file is
closed in one thread while another one reads.
"""

import tempfile
from pathlib import Path

import dask
import dask.array as da
import numpy as np
import pandas as pd
import xarray as xr
from dask.distributed import Client


def year(number):
    time = pd.date_range(f"{number}-01-01", periods=12, freq="MS")
    values = np.arange(12 * 20 * 30, dtype="float64").reshape(12, 20, 30) + number
    return xr.Dataset(
        {"t2m": (("time", "lat", "lon"), values)},
        coords={"time": time, "lat": np.linspace(-90, 90, 20), "lon": np.linspace(0, 348, 30)},
    )


def main(client):
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder, f"{number}.nc") for number in range(2000, 2004)]
        for number, path in zip(range(2000, 2004), paths, strict=True):
            year(number).to_netcdf(path, engine="h5netcdf")
        ds = xr.open_mfdataset(paths, parallel=True, chunks={"time": 6}, engine="h5netcdf")
        print(dict(ds.sizes), round(float(ds.t2m.mean().compute()), 3))
        ds.to_zarr(Path(folder, "all.zarr"), mode="w")
        again = xr.open_zarr(Path(folder, "all.zarr"))
        months = (again.t2m - again.t2m.mean("time")).groupby("time.month").mean().compute()
        print(months.shape, np.round(months[:, 0, 0].values, 3).tolist())
        ds.close()

    with dask.config.set({"array.rechunk.method": "p2p"}):
        x = da.arange(10_000, chunks=1000).reshape(100, 100).rechunk((100, 10)).rechunk((10, 100))
        print(x.chunks, int(x.sum().compute()), (x.T @ x).trace().compute())


if __name__ == "__main__":
    client = Client()
    main(client)
