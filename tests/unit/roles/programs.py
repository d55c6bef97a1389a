"""The Python files of roles, which lie in no package, as modules for their tests."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from tests.checks.runner import ROOT


def load(path: str) -> ModuleType:
    """Return the module made of a file below the folder `roles`."""
    file = Path(ROOT, "roles", path)
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[file.stem] = module
    spec.loader.exec_module(module)
    return module
