"""maescreen: from a folder of medical images to a certified screening threshold and a report."""

import os

# Arrow's own allocator keeps what it frees, which adds up while an archive is read piece by piece. Arrow reads this
# when it is first imported.
os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")

__version__ = "0.1.0"
