"""dask-ml: IncrementalSearchCV and HyperbandSearchCV."""

import dask.array as da
import numpy as np
from dask.distributed import Client
from dask_ml.model_selection import HyperbandSearchCV, IncrementalSearchCV
from sklearn.linear_model import SGDClassifier


def main(client):
    x = da.random.default_rng(0).random((400, 4), chunks=(100, 4))
    y = (x[:, 0] > 0.5).astype(int)
    model = SGDClassifier(tol=1e-3, random_state=0)
    parameters = {"alpha": np.logspace(-4, 0, 6), "average": [True, False]}
    search = IncrementalSearchCV(model, parameters, n_initial_parameters=4, decay_rate=None, max_iter=5, random_state=0)
    search.fit(x, y, classes=[0, 1])
    print(sorted(search.best_params_), search.best_score_ > 0.5)
    search = HyperbandSearchCV(model, parameters, max_iter=9, random_state=0)
    search.fit(x, y, classes=[0, 1])
    print(sorted(search.best_params_), search.best_score_ > 0.5)


if __name__ == "__main__":
    client = Client()
    main(client)
