"""transformers' own tests, from the source package of the installed version.

The source package holds the common mixins but not everything that they import; what it lacks is stubbed here:
`GenerationTesterMixin`, `ExportTesterMixin` and the list of common configuration values exist in the repository only,
so their tests do not run. Our generation tests are in tests/model.
"""

import importlib
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from types import ModuleType

import pytest
import transformers
from filelock import FileLock

from tests.helpers import REPOSITORY


CACHE = REPOSITORY / ".cache" / "conformance"
PACKAGE = f"transformers_{transformers.__version__.replace('.', '_')}_tests"
STUBS = {
    "__init__.py": "",
    "exporters/__init__.py": "",
    "exporters/test_export.py": "class ExportTesterMixin: ...\n",
    "generation/__init__.py": "",
    "generation/test_utils.py": "class GenerationTesterMixin: ...\n",
    "utils/__init__.py": "",
    "utils/test_configuration_utils.py": "config_common_kwargs = {}\n",
}


def _download() -> None:
    requirement = f"transformers=={transformers.__version__}"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary=:all:", requirement]
    # Beside its destination, so that one rename completes it: an interrupted download leaves nothing to trip over.
    with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
        subprocess.run([*command, "--dest", scratch], check=True, timeout=300)
        (archive,) = Path(scratch).glob("*.tar.gz")
        with tarfile.open(archive) as source:
            source.extraction_filter = getattr(tarfile, "data_filter", None)  # Python 3.11.4 and later
            source.extractall(scratch)
        (tests,) = Path(scratch).glob("transformers-*/tests")
        for name, text in STUBS.items():
            (tests / name).parent.mkdir(exist_ok=True)
            (tests / name).write_text(text)
        tests.rename(CACHE / PACKAGE)


def upstream(module: str) -> ModuleType:
    """A module of transformers' tests. Without the source package the calling module is skipped; in CI it fails."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with FileLock(CACHE / ".lock"):
        if not (CACHE / PACKAGE).exists():
            try:
                _download()
            except subprocess.SubprocessError as error:
                if os.environ.get("CI"):
                    raise
                pytest.skip(f"transformers' source package could not be fetched: {error}", allow_module_level=True)
    if str(CACHE) not in sys.path:
        sys.path.append(str(CACHE))
    return importlib.import_module(f"{PACKAGE}.{module}")
