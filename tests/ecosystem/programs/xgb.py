"""xgboost's dask interface, as its documentation has it."""

import dask.array as da
import xgboost as xgb
from dask.distributed import Client
from xgboost import dask as dxgb


def main(client):
    x = da.random.default_rng(0).random((1000, 4), chunks=(250, 4))
    y = (x[:, 0] > 0.5).astype(int)
    dtrain = dxgb.DaskDMatrix(client, x, y)
    parameters = {"objective": "binary:logistic", "tree_method": "hist", "nthread": 1, "verbosity": 0}
    output = dxgb.train(client, parameters, dtrain, num_boost_round=4, evals=[(dtrain, "train")], verbose_eval=False)
    predicted = dxgb.predict(client, output, x).compute()
    print(predicted.shape, ((predicted > 0.5) == y.compute()).mean() > 0.95, len(output["history"]["train"]["logloss"]))

    # Without a client: it looks for the default one.
    classifier = dxgb.DaskXGBClassifier(n_estimators=3, n_jobs=1, verbosity=0)
    classifier.fit(x, y)
    print(classifier.predict(x).compute().shape, isinstance(classifier.get_booster(), xgb.Booster))


if __name__ == "__main__":
    client = Client()
    main(client)
