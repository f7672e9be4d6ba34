"""Who may import whom, and the graph as it is: `python -m tests.architecture`.

Each floor uses what stands below it, and itself. Of the rooms of one floor, none knows another.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1] / "pipeline"
# From the bottom. The package itself is everybody's.
FLOORS = (
    ("store",),
    ("imaging", "models", "statistics"),
    ("labels", "tasks"),
    ("settings",),
    ("inference",),
    ("evaluation", "orchestration", "reporting"),
    ("delivery",),
    ("stages",),
    ("commands",),
    ("cli",),
)
EVERYBODYS = ("",)


def modules() -> list[str]:
    """Return the files of the package, relative to it."""
    return sorted(str(path.relative_to(ROOT)) for path in ROOT.rglob("*.py"))


@cache
def imported(path: str, run_time_only: bool = True) -> frozenset[str]:
    """Return every module and name that a file imports, those for type checking left out."""
    names: set[str] = set()

    def visit(node: ast.AST) -> None:
        if run_time_only and isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            return
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse((ROOT / path).read_text("utf-8")))
    return frozenset(names)


def ours(path: str) -> set[str]:
    """Return the modules of this package that a file imports, as files relative to it."""
    return {found for name in imported(path) if (found := _file(name)) is not None}


def _file(name: str) -> str | None:
    parts = name.split(".")
    if parts[0] != "pipeline":
        return None
    for end in (len(parts), len(parts) - 1):
        base = "/".join(parts[1:end])
        for file in (f"{base}.py", f"{base}/__init__.py" if base else "__init__.py"):
            if (ROOT / file).is_file():
                return file
    raise AssertionError(f"{name}: no such module")


def room(path: str) -> str:
    """Return the room of a file: the folder, or the file at the top."""
    first = path.split("/")[0].removesuffix(".py")
    return "" if first == "__init__" else first


def floor(name: str) -> int:
    """Return the floor of a room; those of everybody stand below all others."""
    return -1 if name in EVERYBODYS else next(n for n, rooms in enumerate(FLOORS) if name in rooms)


def arrows_up() -> list[str]:
    """Return the imports from a room of the same floor or of a higher one."""
    found = []
    for path in modules():
        for other in sorted(ours(path)):
            here, there = room(path), room(other)
            if here != there and floor(there) >= floor(here):
                found.append(f"{path} imports {other}")
    return found


def circles() -> list[list[str]]:
    """Return the groups of modules that import each other, directly or not."""
    graph = {path: ours(path) - {path} for path in modules()}
    reached = {path: set(_reached(path, graph)) for path in graph}
    groups = {tuple(sorted(o for o in reached[p] if p in reached[o])) for p in graph if p in reached[p]}
    return [list(group) for group in sorted(groups)]


def _reached(start: str, graph: dict[str, set[str]]) -> Iterator[str]:
    waiting, seen = list(graph[start]), set()
    while waiting:
        path = waiting.pop()
        if path not in seen:
            seen.add(path)
            yield path
            waiting += graph[path]


def main() -> None:
    """Print the floors from the top, what each room uses, and what breaks the rules."""
    files = modules()
    for rooms in reversed(FLOORS):
        for name in rooms:
            own = [path for path in files if room(path) == name]
            used = {room(other) for path in own for other in ours(path)} - {name, *EVERYBODYS}
            lines = sum(len((ROOT / path).read_text("utf-8").splitlines()) for path in own)
            print(f"{name:<14} {len(own):>3} files {lines:>6} lines   uses {', '.join(sorted(used, key=floor)) or '-'}")
    up, round_ = arrows_up(), circles()
    print("\n".join([f"{len(up)} arrows that run up or aside", *up, f"{len(round_)} circles", *map(str, round_)]))


if __name__ == "__main__":
    main()
