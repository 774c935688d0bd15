"""Modules as attributes of their package, imported when they are asked for."""

import importlib
import importlib.util
from types import ModuleType


def submodule(package: str, name: str) -> ModuleType:
    """For the `__getattr__` of a package: its module of that name.

    Raises:
        AttributeError: there is none.
    """
    if name.startswith("__") or importlib.util.find_spec(f"{package}.{name}") is None:
        raise AttributeError(f"module {package!r} has no attribute {name!r}")
    return importlib.import_module(f"{package}.{name}")
