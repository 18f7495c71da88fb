"""lightgbm's dask interface: the workers open ports to each other."""

import dask.array as da
import lightgbm as lgb
from dask.distributed import Client


def main(client):
    x = da.random.default_rng(0).random((1000, 4), chunks=(250, 4))
    y = (x[:, 0] > 0.5).astype(int)
    model = lgb.DaskLGBMClassifier(n_estimators=4, n_jobs=1, num_leaves=4, verbose=-1)
    model.fit(x, y)
    predicted = model.predict(x).compute()
    print(predicted.shape, (predicted == y.compute()).mean() > 0.95)


if __name__ == "__main__":
    client = Client()
    main(client)
