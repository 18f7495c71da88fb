"""scikit-learn through joblib's dask backend, and tqdm over futures."""

import sys

import joblib
from dask.distributed import Client, as_completed
from sklearn.datasets import load_digits
from sklearn.model_selection import GridSearchCV
from sklearn.svm import SVC
from tqdm import tqdm


def main(client):
    digits = load_digits()
    search = GridSearchCV(SVC(), {"C": [0.1, 1.0, 10.0], "gamma": [0.001, 0.0001]}, cv=3)
    with joblib.parallel_backend("dask"):
        search.fit(digits.data[:500], digits.target[:500])
    print(search.best_params_, round(search.best_score_, 4))

    with joblib.parallel_config(backend="dask", scatter=[digits.data]):
        sums = joblib.Parallel()(joblib.delayed(sum)(digits.data[row]) for row in range(20))
    print(sum(sums))

    futures = client.map(lambda number: number**2, range(20))
    total = 0
    for future in tqdm(as_completed(futures), total=len(futures), file=sys.stdout, disable=None):
        total += future.result()
    print(total)


if __name__ == "__main__":
    client = Client()
    main(client)
