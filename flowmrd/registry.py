"""One name → plugin registry: discovery in name order, duplicates refused, missing packages reported."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from importlib.util import find_spec
from types import ModuleType
from typing import Any

from flowmrd.errors import PluginError


def discover(package: ModuleType, attribute: str) -> Mapping[str, Any]:
    """Collect the plugins that a package's modules offer.

    Each module may hold `attribute`, a tuple of plugins with a `name`, and `REQUIRES`, optional packages it needs; a
    module whose packages are absent is left out.

    Raises
    ------
    PluginError
        Two modules offer the same name.
    """
    found: dict[str, Any] = {}
    for info in sorted(pkgutil.iter_modules(package.__path__), key=lambda item: item.name):
        module = importlib.import_module(f"{package.__name__}.{info.name}")
        if any(find_spec(name) is None for name in getattr(module, "REQUIRES", ())):
            continue
        for plugin in getattr(module, attribute, ()):
            if plugin.name in found:
                raise PluginError(f"two plugins are named {plugin.name!r}; the second is in {module.__name__}")
            found[plugin.name] = plugin
    return found


def nearest(name: str, known: Mapping[str, Any] | tuple[str, ...]) -> str:
    """Return a hint that names the nearest known name, or all of them."""
    from difflib import get_close_matches

    close = get_close_matches(name, list(known), n=1)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(sorted(known))}"
