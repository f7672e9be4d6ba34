"""Versions of everything that results can depend on."""

from __future__ import annotations

import platform
import runpy
from functools import cache
from importlib import metadata, util
from pathlib import Path

RECORDED_PACKAGES = ("torch", "monai", "pydicom", "nibabel", "pillow", "imagecodecs", "pylibjpeg-openjpeg", "pyjpegls",
                     "highdicom", "numpy", "scipy", "scikit-learn", "scikit-image", "pandas", "pyarrow", "mlflow",
                     "matplotlib", "typst")  # fmt: skip


@cache
def package_versions() -> dict[str, str]:
    """Return the versions of the packages that results can depend on."""
    versions = {}
    for name in RECORDED_PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return versions


@cache
def runtime_versions() -> dict[str, str]:
    """Return the versions of Python and of the CUDA that torch was built for."""
    return {"python": platform.python_version(), "cuda": _cuda_version() or "none"}


def _cuda_version() -> str | None:
    # Importing torch takes seconds; its file of versions imports nothing.
    torch = util.find_spec("torch")
    file = Path(torch.origin).with_name("version.py") if torch and torch.origin else None
    return runpy.run_path(str(file)).get("cuda") if file and file.is_file() else None
