"""The documentation is current, whole and true: generated pages, links, commands, code, notebooks."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
import textwrap
from functools import cache
from pathlib import Path

import pytest

from tests.architecture import FLOORS

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
TEXTS = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
LINK = re.compile(r"\]\(([^)\s]+)\)")
FENCE = re.compile(r"^(<!-- runnable -->\n)?```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"\bmaescreen ([a-z]+(?: info\b)?)")
# Its command arrives with another branch; whoever merges takes it out of here.
COMING: set[str] = set()


@cache
def generator():
    spec = importlib.util.spec_from_file_location("generate", DOCS / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@cache
def generated() -> dict[str, str]:
    return generator().pages()


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize(
    "page", [f"reference/{n}.md" for n in ("configuration", "commands", "tables", "quarantine", "results")]
)
def test_a_page_of_the_reference_says_what_the_code_says(page):
    assert (DOCS / page).read_text("utf-8") == generated()[page], "run: python docs/generate.py"


def test_what_keys_depend_on_is_what_the_code_says():
    assert (DOCS / "concepts/keys.md").read_text("utf-8") == generated()["concepts/keys.md"], (
        "run: python docs/generate.py"
    )


def test_every_page_that_says_it_is_generated_is():
    marked = {path for path in DOCS.rglob("*.md") if path.read_text("utf-8").startswith(generator().NOTE)}
    assert marked == {DOCS / page for page in generated()}


def test_every_setting_has_a_description():
    rows = [line for line in generated()["reference/configuration.md"].splitlines() if line.startswith("| `")]
    assert len(rows) > 150
    assert not [row for row in rows if row.endswith("|  |")]


def test_the_floors_of_the_house_are_those_that_the_rule_knows():
    rows = re.findall(r"^\| \d+ \| (.+) \|$", (DOCS / "concepts/rooms.md").read_text("utf-8"), re.MULTILINE)
    assert [tuple(re.findall(r"`(\w+)`", row)) for row in reversed(rows)] == list(FLOORS)


# ---------------------------------------------------------------- links


def anchors(text: str) -> set[str]:
    """Return the anchors of headings as the site makes them."""
    plain = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    titles = re.findall(r"^#+ (.+)$", plain, re.MULTILINE)
    return {re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", title).strip().lower()) for title in titles}


@pytest.mark.parametrize("path", TEXTS, ids=name)
def test_every_relative_link_leads_somewhere(path):
    for link in LINK.findall(path.read_text("utf-8")):
        if link.startswith(("https://", "http://")):
            continue
        file, _, anchor = link.partition("#")
        target = (path.parent / file).resolve() if file else path
        assert target.exists(), f"{link}: no such file"
        assert not anchor or anchor in anchors(target.read_text("utf-8")), f"{link}: no such heading"
        assert path.parent == ROOT or target.is_relative_to(DOCS), f"{link} leads out of the site"


def test_every_page_is_in_the_menu_of_the_site():
    menu = re.findall(r"^ +- (\S+\.md)$", (ROOT / "mkdocs.yml").read_text("utf-8"), re.MULTILINE)
    assert sorted(menu) == sorted(str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md"))


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_bytes()) <= 6_000
    assert (DOCS / "images" / "page-one.png").stat().st_size <= 200_000


def test_the_site_builds_without_a_warning(tmp_path):
    pytest.importorskip("mkdocs", reason="the extra docs is not installed")
    pytest.importorskip("material", reason="the extra docs is not installed")
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(build, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    assert (tmp_path / "concepts" / "keys" / "index.html").is_file()
    assert not (tmp_path / "generate.py").exists()


# ---------------------------------------------------------------- commands and code


def typed(path: Path) -> str:
    """Return what somebody would type: blocks of no language, and code inside sentences."""
    text = path.read_text("utf-8")
    lines = [block for _, language, block in FENCE.findall(text) if not language]
    return "\n".join([*lines, *re.findall(r"`([^`\n]+)`", FENCE.sub("", text))])


@pytest.mark.parametrize("path", TEXTS, ids=name)
def test_every_command_that_is_named_exists(path):
    known = {command for command, _ in generator().command_tree()} | COMING | {"model"}
    assert {*COMMAND.findall(typed(path))} <= known


@pytest.mark.parametrize("path", TEXTS, ids=name)
def test_every_setting_that_is_named_exists(path):
    """`section.key` in code, where the section is one of a config's."""
    from pipeline.settings.config import Config

    sections = {n: f.annotation for n, f in Config.model_fields.items() if hasattr(f.annotation, "model_fields")}
    for section, key in re.findall(rf"(?<![\w/.])({'|'.join(sections)})\.([a-z_]+)\b", typed(path)):
        assert key in sections[section].model_fields or key in FILES, f"{section}.{key}"


FILES = {"html", "json", "md", "parquet", "pdf", "py"}  # `split.parquet` is a file


def blocks(path: Path) -> list[tuple[bool, str]]:
    """Return the Python code of a page, and whether it is to be run."""
    found = FENCE.findall(path.read_text("utf-8"))
    return [(bool(mark), text) for mark, language, text in found if language == "python"]


@pytest.mark.parametrize("path", [path for path in TEXTS if blocks(path)], ids=name)
def test_code_in_a_page_compiles_and_what_is_marked_runs(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "docs"}
    for number, (runs, text) in enumerate(blocks(path)):
        code = compile(textwrap.dedent(text), f"{name(path)}, block {number}", "exec")
        if runs:
            exec(code, names)


@pytest.mark.parametrize("page", ["arm", "format", "stage"])
def test_the_pages_on_extending_run_and_name_files_that_exist(page):
    path = DOCS / "extending" / f"{page}.md"
    assert sum(runs for runs, _ in blocks(path)) >= 2
    new = {"pipeline/models/grey_arm.py", "pipeline/imaging/formats/pfm.py", "pipeline/stages/audit.py"}
    named = {*re.findall(r"`((?:pipeline|tests|docs)/[\w/]+\.(?:py|md))`", path.read_text("utf-8"))}
    assert len(named) > 5
    assert not [file for file in named - new if not (ROOT / file).is_file()]
    assert not [file for file in new if (ROOT / file).is_file()]


# ---------------------------------------------------------------- from Python


def test_the_package_offers_a_model_and_imports_nothing_for_it():
    code = "import sys, pipeline; print(sorted({'torch', 'numpy', 'pandas'} & {*sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    import pipeline
    from pipeline.delivery.results import write_results
    from pipeline.inference.model import Model

    assert pipeline.Model is Model
    assert pipeline.write_results is write_results
    with pytest.raises(AttributeError, match="has no attribute 'Modell'"):
        _ = pipeline.Modell


def test_notebooks_hold_no_output():
    for path in sorted((ROOT / "examples").glob("*.ipynb")):
        cells = [cell for cell in json.loads(path.read_text("utf-8"))["cells"] if cell["cell_type"] == "code"]
        assert cells
        assert all(not cell["outputs"] and cell["execution_count"] is None for cell in cells), name(path)
