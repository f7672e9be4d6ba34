"""maescreen: from a folder of medical images to a certified screening threshold and a report."""

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.delivery.results import write_results
    from pipeline.inference.model import Model

__all__ = ["Model", "__version__", "write_results"]

# Arrow's own allocator keeps what it frees, which adds up while an archive is read piece by piece. Arrow reads this
# when it is first imported.
os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")

# A thread that waits for another one spins for milliseconds unless told not to: beside a program that has one core, it
# takes the core that the other thread needs, and a training step twice the time. Measured: see "Pretraining step" in
# docs/benchmarks.md. OpenMP reads this when torch is first imported.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")

__version__ = "0.1.0"

# By name and when asked for: torch takes seconds, which `--help` must not.
_LATER = {"Model": "pipeline.inference.model", "write_results": "pipeline.delivery.results"}


def __getattr__(name: str) -> Any:
    """Return what `from pipeline import ...` offers to scripts and notebooks."""
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_LATER[name]), name)
