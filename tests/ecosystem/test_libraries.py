"""Libraries that compute on Dask."""

from __future__ import annotations

from four_ways import FourWays


class TestLibraries(FourWays):
    needs = {
        "arrays": ["xarray", "zarr", "h5netcdf"],
        "learn": ["scikit-learn", "joblib", "tqdm"],
        "clusters": ["dask-ml"],
        "xgb": ["xgboost-cpu|xgboost"],
        "lgbm": ["lightgbm"],
    }
    also = ("arrays", "xgb")
