"""dask-ml: KMeans and preprocessing."""

import dask.array as da
import numpy as np
from dask.distributed import Client
from dask_ml.cluster import KMeans
from dask_ml.preprocessing import StandardScaler


def main(client):
    rng = np.random.default_rng(3)
    points = np.concatenate([rng.normal(center, 0.1, size=(200, 2)) for center in (0, 5, 10)])
    x = da.from_array(points, chunks=(150, 2)).persist()
    fitted = KMeans(n_clusters=3, init_max_iter=2, random_state=0).fit(x)
    print(np.sort(fitted.cluster_centers_[:, 0]).round(1).tolist(), np.bincount(fitted.labels_.compute()).tolist())
    scaled = StandardScaler().fit_transform(x)
    print(np.abs(scaled.mean(axis=0).compute()).round(6).tolist(), scaled.std(axis=0).compute().round(6).tolist())


if __name__ == "__main__":
    client = Client()
    main(client)
