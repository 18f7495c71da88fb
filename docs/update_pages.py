"""Write into the pages what is made from the code: the options in README.md, modules and an example in docs/architecture.md.

Run it from the root of the repository: ``python docs/update_pages.py``. Unit tests fail while a page is out of date.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from dataclasses import MISSING, fields
from pathlib import Path

from batchlet.settings import Settings

ROOT = Path(__file__).parents[1]
FLUX = ROOT / "tests" / "unit" / "data" / "flux_environment" / "batchlet_flux.py"
ROOMS = {
    "": "the ways in, and what all rooms share",
    "jobs": "clusters that grow: jobs that are submitted to a batch system",
    "client": "the client: entering and leaving a run",
    "run_report": "what a run did with what it was granted",
    "visits": "looking at a run, and using its cluster, from outside",
    "node": "what happens on a node",
    "control": "who is alive, who has failed, when it ends",
    "launchers": "how Batchlet starts ranks itself",
    "dask_backend": "everything that touches Dask",
    "rendezvous": "how the ranks meet",
    "environments": "who am I, what was I granted",
}


def options() -> str:
    """Give the table of options, from their one definition, `batchlet.settings.Settings`."""
    rows = ["| option | default | meaning |", "|---|---|---|"]
    for option in fields(Settings):
        if option.metadata:
            default = "" if option.default in (MISSING, None) else f"`{option.default}`"
            rows.append(f"| `{option.name}` | {default} | {option.metadata['help']} |")
    return "\n".join(rows)


def modules() -> str:
    """Give the table of modules, room by room, from their docstrings."""
    rows = ["| room | module | what it is |", "|---|---|---|"]
    files = sorted((ROOT / "batchlet").rglob("*.py"))
    for room, about in ROOMS.items():
        rows.append(f"| **{room or 'batchlet'}** | | {about} |")
        for file in files:
            parts = file.relative_to(ROOT / "batchlet").with_suffix("").parts
            if (parts[0] if len(parts) > 1 else "") != room or parts[-1] == "__init__":
                continue
            summary = (ast.get_docstring(ast.parse(file.read_text())) or "").split("\n\n")[0]
            rows.append(f"| | `{'/'.join(parts)}` | {' '.join(summary.split()).rstrip('.')} |")
    return "\n".join(rows)


def flux() -> str:
    """Give the example of an environment."""
    return f"```python\n{FLUX.read_text().rstrip()}\n```"


def updated(text: str, mark: str, content: Callable[[], str]) -> str:
    """Put the content between its marks."""
    return re.sub(
        rf"(?<=<!-- {mark} -->\n).*?(?=<!-- /{mark} -->)", lambda _: "\n" + content() + "\n\n", text, flags=re.DOTALL
    )


PAGES = {"README.md": {"options": options}, "docs/architecture.md": {"modules": modules, "flux": flux}}


def page(name: str) -> str:
    """Give a page as it should be."""
    text = (ROOT / name).read_text()
    for mark, content in PAGES[name].items():
        text = updated(text, mark, content)
    return text


if __name__ == "__main__":
    for name in PAGES:
        (ROOT / name).write_text(page(name))
