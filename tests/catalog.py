"""Imports a module of services/catalog as its own project would see it: with its siblings on the path."""

import importlib
import sys
from pathlib import Path
from typing import Any

CATALOG = Path(__file__).parents[1] / "services" / "catalog"


def load(module: str, project: str = "") -> Any:
    """The module `module` of the project folder `project`, or the one-file project of that name."""
    folder = str(CATALOG / project)
    sys.path.insert(0, folder)
    try:
        return importlib.import_module(module)
    finally:
        sys.path.remove(folder)
