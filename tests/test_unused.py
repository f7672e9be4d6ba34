"""Nothing stands in the package for tests alone: every public name has somebody in it who uses it."""

import ast
from collections.abc import Iterator

from tests.architecture import ROOT, modules

# What others than the package call, and who.
CALLED_FROM_OUTSIDE = {
    "pipeline.imaging.formats.plugin": dict.fromkeys(
        ["is_available", "decode_jpeg", "decode_rle"], "pydicom calls them by the names that decoding.py gives"
    ),
    "pipeline.inference.study": {"Study.to_array": "Python API, docs/guides/predicting.md"},
    "pipeline.delivery.http.server": dict.fromkeys(
        [
            f"PatientProtocol.{name}"
            for name in ("connection_made", "data_received", "on_response_complete", "connection_lost")
        ],
        "asyncio and uvicorn call them",
    ),
    "pipeline.delivery.node.guard": dict.fromkeys(
        [f"GuardedServer.{name}" for name in ("handle_error", "service_actions", "verify_request")],
        "socketserver calls them",
    ),
}
# Decorators that hand a function to nobody; all others (typer's, FastAPI's, pydantic's) do.
PLAIN = (
    *("dataclass", "cache", "lru_cache", "cached_property", "property", "staticmethod", "classmethod"),
    *("contextmanager", "contextlib.contextmanager", "torch.no_grad", "torch.inference_mode"),
)


def dotted(path: str) -> str:
    """Return the name by which a file of the package is imported."""
    parts = ["pipeline", *path.removesuffix(".py").split("/")]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


TREES = {dotted(path): ast.parse((ROOT / path).read_text("utf-8")) for path in modules()}


def public(module: str) -> Iterator[str]:
    """Yield the functions, classes, constants and methods of a module that nothing hands on by a decorator."""
    for node in TREES[module].body:
        if isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from (one.id for one in targets if isinstance(one, ast.Name) and not one.id.startswith("_"))
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and _nobodys(node):
            yield node.name
        if isinstance(node, ast.ClassDef):
            inner = [one for one in node.body if isinstance(one, ast.FunctionDef) and _nobodys(one)]
            # What a class of another library is to do by a name of that library's.
            inherited = any(isinstance(base, ast.Attribute) or "Visitor" in ast.unparse(base) for base in node.bases)
            yield from (f"{node.name}.{one.name}" for one in inner if not inherited)


def _nobodys(node: ast.FunctionDef | ast.ClassDef) -> bool:
    plain = all(ast.unparse(one).split("(")[0] in PLAIN for one in node.decorator_list)
    return plain and not node.name.startswith("_")


def used() -> set[tuple[str, str]]:
    """Return (module, name) of all that the package's code speaks of, a function's own body left out.

    Of attributes, whose owner is not known, the module is empty. Stages and arms are named in strings.
    """
    found: set[tuple[str, str]] = set()

    def visit(node: ast.AST, module: str, names: dict[str, tuple[str, str]], inside: frozenset[str]) -> None:
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
            found.add(names.get(node.id, ("", "") if node.id in inside else (module, node.id)))
        if isinstance(node, ast.Attribute):
            found.add(("", "" if node.attr in inside else node.attr))
            if isinstance(node.value, ast.Name) and node.value.id in names:
                found.add((".".join(names[node.value.id]), node.attr))
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            spelled = node.value.partition(":")
            found.update({(module, node.value), names.get(node.value, ("", "")), (spelled[0], spelled[2])})
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            inside |= {node.name}
        for child in ast.iter_child_nodes(node):
            visit(child, module, names, inside)

    for module, tree in TREES.items():
        imports = (node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom))
        visit(
            tree, module, {a.asname or a.name: (i.module or "", a.name) for i in imports for a in i.names}, frozenset()
        )
    # graph.py calls a stage by the name of its file.
    return found | {(m, m.rpartition(".")[2]) for m in TREES if m.startswith("pipeline.stages.")}


def test_no_public_name_is_there_for_tests_alone():
    spoken_of = used()
    unused = {
        f"{module}: {name}"
        for module in TREES
        for name in public(module)
        if (("", name.partition(".")[2]) if "." in name else (module, name)) not in spoken_of
    }
    allowed = {f"{module}: {name}" for module, names in CALLED_FROM_OUTSIDE.items() for name in names}
    assert sorted(unused - allowed) == [], "delete them, or use them"
    assert sorted(allowed - unused) == [], "these are used by now: the list need not name them"


def test_a_name_that_only_its_own_body_speaks_of_is_found(monkeypatch):
    text = "def alone():\n    return alone()\n\n\ndef asked():\n    return 1\n\n\nBOUND = asked()\n"
    monkeypatch.setitem(TREES, "pipeline.toy", ast.parse(text))
    found = [name for name in public("pipeline.toy") if ("pipeline.toy", name) not in used()]
    assert found == ["alone", "BOUND"]
