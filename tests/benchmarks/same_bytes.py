"""Whether two versions of the code leave the same bytes: every file of two stores, matched by stage and content.

    python tests/benchmarks/same_bytes.py stores BEFORE AFTER
    python tests/benchmarks/same_bytes.py commits COMMIT FOLDER [small further external volumes demo]

`stores` compares two folders of artifacts. `commits` makes small projects in FOLDER, runs each with the code of COMMIT,
taken out of git beside them, and with the code as it is here, and compares what came of it. Prints what differs, and
ends with exit code 1 when anything does.

Left out are files whose content is dates, durations, commits or the hash of one that holds them: HOLD_DATES. In JSON
files, the keys of the artifacts themselves stand for the stage, since changed code changes keys. Takes about two
minutes a project on idle cores, the demo many more.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from project import PATIENTS, add_external, make_project
from small_projects import add_further_labels, make_volumes

ROOT = Path(__file__).parents[2]
# What a store holds beside artifacts is about machines and moments: MLflow, locks, ledger, memory of what is indexed.
RECORD = "artifact.json"
HOLD_DATES = {
    RECORD: "dates, durations, commit",
    "reading.json": "key of the code that read",
    "report.pdf": "date", "appendix.pdf": "date", "report.html": "date", "report.json": "date and commit",
    "model_card.md": "date and commit", "SHA256SUMS": "hashes of files that hold them",
    "stages.csv": "commits", "packages.csv": "versions", "making.csv": "dates", "hashes.csv": "keys",
}  # fmt: skip
# The hash of a packaged model is that of files that hold keys and commits; what is in them is compared one by one.
FROM_CODE = re.compile(rb'"(git_commit|model_sha256)": ?"[^"]*"')
# Runs with settings that take seconds: what is compared is whether bytes are the same, not how good they are.
QUICK = ("pretrain.max_steps=6", "finetune.epochs=2", "finetune.seeds=[1]", "machine.workers=1")


def contents(store: Path) -> Counter[tuple[str, str, str]]:
    """Count (stage, file, SHA-256) of all files of finished artifacts that hold no dates."""
    folders = [path.parent for path in sorted(store.glob(f"*/*/{RECORD}"))]
    stages = {folder.name.encode(): folder.parent.name.encode() for folder in folders}
    found: Counter[tuple[str, str, str]] = Counter()
    for folder in folders:
        for path in _files(folder):
            data = path.read_bytes()
            if path.suffix == ".json":
                for key, stage in stages.items():
                    data = data.replace(key, stage)
                data = FROM_CODE.sub(b"", data)
            found[folder.parent.name, str(path.relative_to(folder)), hashlib.sha256(data).hexdigest()] += 1
    return found


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name not in HOLD_DATES)


def differences(before: Path, after: Path) -> list[str]:
    """Return a line for each file of one store that the other has not, with these bytes, in the same stage."""
    one, other = contents(before), contents(after)
    lost, new = one - other, other - one
    both = {(stage, name) for stage, name, _ in lost} & {(stage, name) for stage, name, _ in new}
    lines = [f"{stage}/{name}: other bytes" for stage, name in both]
    for what, part in (("before alone", lost), ("after alone", new)):
        lines += [f"{stage}/{name}: {what}" for stage, name, _ in part if (stage, name) not in both]
    return sorted(lines)


def compare(before: Path, after: Path, title: str) -> bool:
    """Print what differs between two stores; return whether anything does, or there was nothing to compare."""
    found, count = differences(before, after), contents(after).total()
    print(f"{title}: {count} files, {len(found)} differences", *found, sep="\n  ", flush=True)
    return bool(found) or not count


# ---------------------------------------------------------------- runs


def _small(folder: Path) -> list[str]:
    return [str(make_project(folder).config), *QUICK]


def _further(folder: Path) -> list[str]:
    project = make_project(folder)
    add_further_labels(project)
    return [str(project.config), *QUICK, "finetune.arms=[hog]"]


def _external(folder: Path) -> list[str]:
    project = make_project(folder)
    other = add_external(project, "site_b", slice(PATIENTS, PATIENTS + 40))
    return [str(project.config), *QUICK, "finetune.arms=[hog]", f"data.external=[{other}]"]


def _volumes(folder: Path) -> list[str]:
    return [str(make_volumes(folder).config)]


def _demo(folder: Path) -> list[str]:
    return [str(ROOT / "configs" / "demo.yaml"), f"reports={folder / 'reports'}"]


PROJECTS: dict[str, Callable[[Path], list[str]]] = {
    "small": _small, "further": _further, "external": _external, "volumes": _volumes, "demo": _demo,
}  # fmt: skip


def run(code: Path, words: list[str], store: Path) -> None:
    """Run the pipeline with the code in a folder; a run that ends with a failed gate is one, too."""
    command = [sys.executable, "-m", "pipeline.cli", "run", *words, "--store", str(store)]
    environment = {**os.environ, "PYTHONPATH": str(code), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=code, env=environment, capture_output=True, text=True)
    if done.returncode not in (0, 3):
        raise SystemExit(f"{code.name}: exit code {done.returncode}\n{done.stderr[-4000:]}")


def main() -> None:
    """Compare two stores, or what two versions of the code leave."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, dest="what")
    stores = commands.add_parser("stores")
    stores.add_argument("before", type=Path)
    stores.add_argument("after", type=Path)
    commits = commands.add_parser("commits")
    commits.add_argument("commit")
    commits.add_argument("folder", type=Path)
    commits.add_argument("projects", nargs="*", metavar="PROJECT", help=", ".join(PROJECTS))
    asked = parser.parse_args()
    if asked.what == "stores":
        raise SystemExit(compare(asked.before, asked.after, "stores"))
    folder = asked.folder.resolve()
    earlier = folder / "earlier"
    earlier.mkdir(parents=True)
    archive = subprocess.run(["git", "archive", asked.commit, "pipeline"], cwd=ROOT, capture_output=True, check=True)
    subprocess.run(["tar", "-x", "-C", str(earlier)], input=archive.stdout, check=True)
    differ = False
    for name in asked.projects or [one for one in PROJECTS if one != "demo"]:
        words = PROJECTS[name](folder / name)
        for code, when in ((earlier, "before"), (ROOT, "after")):
            run(code, words, folder / when / name)
        differ |= compare(folder / "before" / name, folder / "after" / name, name)
    raise SystemExit(differ)


if __name__ == "__main__":
    main()
