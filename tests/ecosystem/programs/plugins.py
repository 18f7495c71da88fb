"""Plugins of distributed: Environ, PipInstall, UploadDirectory, one's own; and upload_file."""

import os
import sys
import tempfile
import zipfile
from pathlib import Path

import distributed
from dask.distributed import Client, get_worker
from distributed.diagnostics.plugin import (
    Environ,
    PipInstall,
    SchedulerPlugin,
    UploadDirectory,
    WorkerPlugin,
)


class Counts(SchedulerPlugin):
    name = "counts"

    def __init__(self):
        self.finished = 0

    def transition(self, key, start, finish, *args, **kwargs):
        self.finished += str(key).startswith("counted") and finish == "memory"


class Greets(WorkerPlugin):
    name = "greets"

    def __init__(self, greeting):
        self.greeting = greeting

    def setup(self, worker):
        worker.greeting = self.greeting

    def teardown(self, worker):
        del worker.greeting


def wheel(folder):
    """Make a wheel, as one has that was brought to a cluster without a network."""
    info = "probe_of_wheels-1.0.dist-info"
    files = {
        "probe_of_wheels.py": "value = 42\n",
        f"{info}/METADATA": "Metadata-Version: 2.1\nName: probe-of-wheels\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: hand\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{name},,\n" for name in [*files, f"{info}/RECORD"])
    path = Path(folder, "probe_of_wheels-1.0-py3-none-any.whl")
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in {**files, f"{info}/RECORD": record}.items():
            archive.writestr(name, text)
    return path


def installed(folder):
    sys.path.append(folder)
    import probe_of_wheels

    return probe_of_wheels.value


def uploaded():
    import single_module_of_mine

    return single_module_of_mine.value


def in_a_package():
    from directory_of_mine import inner

    return inner.value


def main(client):
    client.register_plugin(Environ({"OF_THE_ENVIRON_PLUGIN": "yes"}))
    print("Environ", set(client.run(os.getenv, "OF_THE_ENVIRON_PLUGIN").values()))

    client.register_plugin(Counts())
    client.gather(client.map(abs, range(5), key=[f"counted-{number}" for number in range(5)]))
    counted = client.run_on_scheduler(lambda dask_scheduler: dask_scheduler.plugins["counts"].finished)
    print("SchedulerPlugin", counted)

    client.register_plugin(Greets("hello"))
    print("WorkerPlugin", client.submit(lambda: get_worker().greeting).result())
    client.unregister_worker_plugin("greets")
    print("unregistered", client.submit(lambda: hasattr(get_worker(), "greeting")).result())

    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "single_module_of_mine.py").write_text("value = 'module'\n")
        client.upload_file(f"{folder}/single_module_of_mine.py")
        print("upload_file", client.submit(uploaded).result())

        package = Path(folder, "directory_of_mine")
        package.mkdir()
        (package / "__init__.py").write_text("")
        (package / "inner.py").write_text("value = 'package'\n")
        client.register_plugin(UploadDirectory(str(package), update_path=True))
        print("UploadDirectory", client.submit(in_a_package).result())

        target = f"{folder}/site"
        options = ["--no-index", "--no-deps", "--target", target]
        client.register_plugin(PipInstall([str(wheel(folder))], pip_options=options))
        print("PipInstall", client.submit(installed, target).result())

    versions = client.get_versions(check=True)
    print("versions", sorted(versions) == ["client", "scheduler", "workers"], distributed.__version__ != "")


if __name__ == "__main__":
    client = Client()
    main(client)
