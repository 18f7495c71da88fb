"""Run the user's program as ``python`` itself would: the same ``__main__``, arguments, tracebacks and exit codes."""

from __future__ import annotations

import builtins
import linecache
import os
import runpy
import sys
import types
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from .errors import UsageError

__all__ = ["Program", "show_exception"]


@dataclass(frozen=True)
class Program:
    """A program to run.

    Parameters
    ----------
    kind : str
        "script", "module" (``-m``) or "code" (``-c``).
    target : str
        Path, module name or source text.
    arguments : tuple of str
        What the program sees as ``sys.argv[1:]``.
    """

    kind: str
    target: str
    arguments: tuple[str, ...] = ()

    def check(self) -> None:
        """Find out whether there is such a script.

        Raises
        ------
        UsageError
            If not.
        """
        if self.kind == "script" and not Path(self.target).exists():
            raise UsageError(f"There is no script {self.target!r} in {Path.cwd()}.")

    def prepare(self) -> None:
        """Set ``sys.path`` as Python does for this program; on every rank, since tasks need the script's modules too."""
        # Our own `-m` has put the working directory there, which is right for modules and code only.
        if sys.path and sys.path[0] in ("", str(Path.cwd())):
            del sys.path[0]
        if self.kind == "script" and not self._is_archive:
            sys.path.insert(0, str(Path(self.target).resolve().parent))
        elif self.kind == "script":
            sys.path.insert(0, self.target)
        else:
            sys.path.insert(0, str(Path.cwd()) if self.kind == "module" else "")

    @property
    def _is_archive(self) -> bool:
        return Path(self.target).is_dir() or self.target.endswith((".zip", ".pyz"))

    def run(self, names: Mapping[str, object] | None = None) -> None:
        """Run the program as ``__main__`` in this process; whatever it raises comes out of here.

        Parameters
        ----------
        names : mapping of str to object, optional
            What a script, or code, finds as its own variables.
        """
        if self.kind == "module":
            sys.argv[:] = [self.target, *self.arguments]
            runpy.run_module(self.target, run_name="__main__", alter_sys=True)
            return
        source = b""
        main = types.ModuleType("__main__")
        main.__dict__.update(names or {}, __builtins__=builtins)
        if self.kind == "code":
            sys.argv[:] = ["-c", *self.arguments]
            source, name = self.target.encode(), "<string>"
            if sys.version_info >= (3, 13):
                # Since then tracebacks show the lines of such code too.
                linecache.cache[name] = (len(source), None, self.target.splitlines(keepends=True), name)
        else:
            sys.argv[:] = [self.target, *self.arguments]
            if self._is_archive:
                runpy.run_path(self.target, run_name="__main__")
                return
            # Python makes the path of a script absolute, but follows no links in it.
            name = main.__file__ = os.path.abspath(self.target)  # noqa: PTH100
            main.__dict__["__cached__"] = None
        sys.modules["__main__"] = main
        if self.kind == "script":
            source = Path(self.target).read_bytes()
        code = compile(source, name, "exec", dont_inherit=True)
        exec(code, main.__dict__)  # noqa: S102 - to run the user's program is what we are for


def show_exception(error: BaseException) -> None:
    """Print the traceback as Python would, without the frames that are ours."""
    traceback = error.__traceback__
    ours = (os.path.dirname(__file__), "<frozen runpy>", runpy.__file__)  # noqa: PTH120
    while traceback is not None and traceback.tb_frame.f_code.co_filename.startswith(ours):
        traceback = traceback.tb_next
    sys.stdout.flush()
    sys.excepthook(type(error), error.with_traceback(traceback), traceback)
