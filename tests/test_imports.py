"""Who may import whom. The house stays a house only while this holds."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "pipeline"
MODULES = sorted(str(path.relative_to(ROOT)) for path in ROOT.rglob("*.py"))
LIBRARIES = ("imaging", "models", "statistics", "reporting")
ONLY_IN = {
    "mlflow": ("store/tracking.py",),
    "typer": ("cli.py",),
    "torch.distributed": ("models/distributed.py",),
    "typst": ("reporting/",),
    "pydicom": ("imaging/", "doctor.py"),
}
FORBIDDEN = ("pickle", "joblib.load", "joblib.dump", "cloudpickle", "dill", "shelve")
SHARED_STORE = ("pipeline.store.tables", "pipeline.store.files")


def imported(path: str, run_time_only: bool = True) -> set[str]:
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

    visit(ast.parse((ROOT / path).read_text()))
    return names


def ours(path: str) -> set[str]:
    return {name for name in imported(path) if name.startswith("pipeline.")}


@pytest.mark.parametrize("path", [m for m in MODULES if m.startswith(LIBRARIES)])
def test_a_library_knows_only_itself_and_the_tables(path):
    own = f"pipeline.{path.split('/')[0]}"
    strangers = {name for name in ours(path) if not name.startswith((own, *SHARED_STORE))}
    assert not strangers


@pytest.mark.parametrize("path", [m for m in MODULES if m.startswith("stages/")])
def test_stages_never_import_each_other(path):
    allowed = tuple(f"pipeline.{library}" for library in LIBRARIES) + SHARED_STORE
    assert not {name for name in ours(path) if not name.startswith(allowed)}


@pytest.mark.parametrize("path", [m for m in MODULES if m.startswith("store/")])
def test_the_store_knows_nothing_above_it(path):
    assert not {name for name in ours(path) if not name.startswith("pipeline.store")}


@pytest.mark.parametrize("path", MODULES)
def test_some_libraries_have_one_place(path):
    for library, places in ONLY_IN.items():
        used = any(name == library or name.startswith(f"{library}.") for name in imported(path))
        assert not used or path.startswith(places), f"{library} belongs in {places}"


@pytest.mark.parametrize("path", MODULES)
def test_nothing_reads_or_writes_pickles(path):
    assert not {name for name in imported(path, run_time_only=False) if name.startswith(FORBIDDEN)}
    tree = ast.parse((ROOT / path).read_text())
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        function, keywords = ast.unparse(call.func), {k.arg: ast.unparse(k.value) for k in call.keywords}
        if function == "torch.load":
            assert keywords.get("weights_only") == "True"
        if function.endswith("np.load"):
            assert keywords.get("allow_pickle", "False") == "False"
        assert function not in {"eval", "exec", "yaml.unsafe_load", "pd.read_pickle"}
        assert "extractall" not in function
        assert keywords.get("shell", "False") == "False"


def test_help_needs_no_heavy_import():
    heavy = ["torch", "mlflow", "monai", "pandas", "matplotlib", "sklearn", "pydantic"]
    code = f"import sys, pipeline.cli; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
