"""The command line: parse, call, print. No logic.

Exit codes: 0 done, 1 error, 2 usage (a wrong option or config), 3 finished but a gate failed, 75 stopped in time: the
same command goes on.
"""

# In the order in which --help lists the commands.
from pipeline.cli import runs, projects, studies, models  # noqa: F401, I001
from pipeline.cli.app import app, main

__all__ = ["app", "main"]
