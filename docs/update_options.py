"""Write the table of options in README.md from their one definition, `batchlet.settings.Settings`.

Run it from the root of the repository: ``python docs/update_options.py``. A unit test fails while the table is out of date.
"""

from __future__ import annotations

import re
from dataclasses import MISSING, fields
from pathlib import Path

from batchlet.settings import Settings


def table() -> str:
    """Give the table."""
    rows = ["| option | default | meaning |", "|---|---|---|"]
    for option in fields(Settings):
        if option.metadata:
            default = "" if option.default in (MISSING, None) else f"`{option.default}`"
            rows.append(f"| `{option.name}` | {default} | {option.metadata['help']} |")
    return "\n".join(rows)


def updated(text: str) -> str:
    """Put the table between their marks in the README's text."""
    return re.sub(
        r"(?<=<!-- options -->\n).*?(?=<!-- /options -->)", lambda _: "\n" + table() + "\n\n", text, flags=re.DOTALL
    )


if __name__ == "__main__":
    readme = Path("README.md")
    readme.write_text(updated(readme.read_text()))
