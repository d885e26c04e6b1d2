"""Files that belong to the program: icons, themes, the catalogue of known models."""

from __future__ import annotations

from importlib.resources import files


def read_text(name: str) -> str:
    """The text of a file in this package, named by its path below it with "/" between the parts."""
    return files(__name__).joinpath(*name.split("/")).read_text(encoding="utf-8")
