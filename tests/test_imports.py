"""Who may import whom. The house stays a house only while this holds."""

import ast
import os
import subprocess
import sys

import pytest

from tests.architecture import ROOT, arrows_up, circles, imported, modules, ours

ONLY_IN = {
    "mlflow": ("store/tracking.py", "store/registry.py", "store/served_model.py", "inference/mlflow_model.py"),
    "onnx": ("inference/onnx_graph.py", "inference/onnx_nodes.py", "inference/export.py"),
    "onnxruntime": ("inference/export.py",),
    "typer": ("cli/",),
    "torch.distributed": ("models/distributed.py",),
    "typst": ("reporting/",),
    "pydicom": ("imaging/", "delivery/dicom/", "delivery/node/", "commands/doctor.py"),
    "pynetdicom": ("delivery/node/",),
    "highdicom": ("imaging/", "delivery/dicom/"),
    **dict.fromkeys(("fastapi", "starlette", "uvicorn"), ("delivery/http/",)),
}
FORBIDDEN = ("pickle", "joblib.load", "joblib.dump", "cloudpickle", "dill", "shelve")
# What a library may know of the store: tables, results and files, never artifacts or where they lie.
SHARED_STORE = ("store/tables", "store/results", "store/files.py", "store/versions.py", "store/wording.py")
LIBRARIES = ("imaging/", "models/", "statistics/", "reporting/", "labels/", "inference/", "evaluation/")


def test_every_room_uses_only_what_stands_below_it():
    assert not arrows_up()


def test_no_modules_import_each_other_in_a_circle():
    assert not circles()


@pytest.mark.parametrize("path", [m for m in modules() if m.startswith(LIBRARIES)])
def test_a_library_knows_only_tables_and_files_of_the_store(path):
    assert not {other for other in ours(path) if other.startswith("store/") and not other.startswith(SHARED_STORE)}


@pytest.mark.parametrize("path", [m for m in modules() if m.startswith("reporting/")])
def test_reports_take_numbers_and_pictures_and_the_one_door(path):
    others = {other for other in ours(path) if not other.startswith(("reporting/", "store/"))}
    words = {"inference/model_card.py", "inference/plain_text.py"}  # both model cards are written with them
    assert others <= {"inference/__init__.py", "inference/decision.py", *words}


@pytest.mark.parametrize("path", [m for m in modules() if m.startswith("stages/")])
def test_stages_know_neither_each_other_nor_how_they_are_run(path):
    strangers = ("stages/", "orchestration/", "settings/", "commands/", "cli/")
    assert not {other for other in ours(path) if other.startswith(strangers) and other != "stages/__init__.py"}


@pytest.mark.parametrize("path", modules())
def test_some_libraries_have_one_place(path):
    for library, places in ONLY_IN.items():
        used = any(name == library or name.startswith(f"{library}.") for name in imported(path))
        assert not used or path.startswith(places), f"{library} belongs in {places}"


@pytest.mark.parametrize("path", modules())
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


@pytest.mark.parametrize(
    ("given", "expected"), [({}, "1000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, "None")]
)
def test_threads_that_wait_leave_the_core_unless_told_otherwise(given, expected):
    kept = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    shown = "import os, pipeline; print(os.environ.get('GOMP_SPINCOUNT'))"
    done = subprocess.run([sys.executable, "-c", shown], env=kept | given, capture_output=True, text=True)
    assert done.stdout.strip() == expected
