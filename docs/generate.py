"""Write the pages that follow from the code: `python docs/generate.py`; with `--check`, say which are not current."""

from __future__ import annotations

import argparse
import types
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from pipeline import cli
from pipeline.imaging.quarantine import FLAGS, REASONS
from pipeline.inference.result import MEANINGS, SCHEMA
from pipeline.inference.rule import REASONS as NOT_ASSESSABLE
from pipeline.orchestration.graph import KEEP_APART, STAGES, Stage
from pipeline.settings.card import Card
from pipeline.settings.config import Config
from pipeline.store.lineage import code_digests
from pipeline.store.tables import catalogue as tables

FOLDER = Path(__file__).parent
NOTE = "<!-- Made by `python docs/generate.py`; edit the code that it reads, not this page. -->"
# By how the name of a setting ends.
UNITS = {
    "_mm": "mm",
    "_mb": "MB",
    "_s": "s",
    "_minutes": "min",
    "_degrees": "°",
    "_pixels": "pixels",
    "image_size": "pixels",
    "patch_size": "pixels",
    "min_side": "pixels",
    "epochs": "epochs",
    "steps": "steps",
    "prevalence": "share",
    "prevalences": "share",
    "_share": "share",
    "percentile": "%",
}
LIMITS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
PLAIN = {str: "text", int: "integer", float: "number", bool: "true, false", Path: "path", dict: "table"}
ARROW = {"string": "text", "int64": "integer", "double": "number", "bool": "yes or no", "binary": "bytes"}
Rows = Iterator[tuple[str, ...]]


def pages() -> dict[str, str]:
    """Return the text of every generated page by its path below docs/."""
    return {
        "reference/configuration.md": configuration(),
        "reference/commands.md": commands(),
        "reference/tables.md": table_columns(),
        "reference/quarantine.md": quarantine(),
        "reference/results.md": results(),
        "concepts/keys.md": keys(),
    }


# ---------------------------------------------------------------- configuration


def configuration() -> str:
    """Return every key of config and card, with kind, unit, default and description."""
    parts = [
        "A config is one YAML file for a complete run. `section.key=value` behind a command replaces a setting for",
        "that run. Unknown keys, wrong types and impossible values are errors, all of them named at once with their",
        "lines.",
        "",
        "`project`, `store`, `reports`, `data`, `tracking` and `machine` are part of no key: they say where and how",
        "fast, not what. The other sections each belong to a stage and are part of its key.",
        "",
        *_section("The run", "", Config),
    ]
    for name, field in Config.model_fields.items():
        if (model := _model(field.annotation)) is not None:
            parts += _section(f"`{name}`", name, model)
    parts += ["## The dataset card", "", "A file of its own, named by `data.card`.", ""]
    parts += _table(("key", "kind", "unit", "default", "meaning"), _settings("", Card, nested=True))
    return _page("Configuration", parts)


def _section(title: str, name: str, model: type[BaseModel]) -> list[str]:
    rows = _settings(f"{name}." if name else "", model, nested=bool(name))
    return [f"## {title}", "", _sentence(model.__doc__), "", *_table(_HEAD, rows), ""]


_HEAD = ("key", "kind", "unit", "default", "meaning")


def _settings(prefix: str, model: type[BaseModel], nested: bool) -> Rows:
    """Yield a row per key; sections inside a section are listed with their keys when `nested`."""
    for name, field in model.model_fields.items():
        inner = _model(field.annotation)
        if inner is None:
            yield f"`{prefix}{name}`", _kind(field), _unit(name), _default(field), field.description or ""
        elif nested:
            mark = "[]" if get_origin(_bare(field.annotation)) is list else ""
            if mark:
                yield f"`{prefix}{name}`", "list of tables", "", _default(field), field.description or ""
            yield from _settings(f"{prefix}{name}{mark}.", inner, nested)


def _model(annotation: Any) -> type[BaseModel] | None:
    """Return the model behind an annotation, that of its items for a list."""
    for one in (annotation, *get_args(_bare(annotation))):
        if isinstance(one, type) and issubclass(one, BaseModel):
            return one
    return None


def _bare(annotation: Any) -> Any:
    return get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation


def _kind(field: FieldInfo) -> str:
    """Return the kind of a value with its limits: `number > 0, ≤ 1 or null`."""
    kind, null, _ = _type(field.annotation).partition(" or null")
    return kind + _limits(field.metadata) + null


def _limits(notes: Sequence[Any]) -> str:
    parts = [part for one in notes for part in getattr(one, "metadata", [one])]
    found = [(sign, getattr(part, name, None)) for part in parts for name, sign in LIMITS.items()]
    shown = ", ".join(f"{sign} {_number(value)}" for sign, value in found if value is not None)
    return f" {shown}" if shown else ""


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"


def _type(annotation: Any) -> str:
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type(inner[0]) + _limits(inner[1:])
    if origin is Literal:
        return ", ".join(f"`{one}`" for one in inner)
    if origin in (Union, types.UnionType):
        return " or ".join("null" if one is type(None) else _type(one) for one in inner)
    if origin is list:
        kind, limits, rest = _type(inner[0]).partition(" ")
        many = kind if kind.startswith(("`", "text")) else f"{kind}s"
        return f"list of {many}{limits}{rest}"
    return PLAIN[origin or annotation]


def _unit(name: str) -> str:
    return next((unit for end, unit in UNITS.items() if name.endswith(end)), "")


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if value is None or isinstance(value, bool):
        return f"`{ {None: 'null', True: 'true', False: 'false'}[value] }`"
    if isinstance(value, list):
        return f"`[{', '.join(map(str, value))}]`"
    return f"`{value!s}`" if value != "" else "empty"


# ---------------------------------------------------------------- commands


def commands() -> str:
    """Return every command with its arguments and options."""
    parts = ["Exit codes: 0 done; 1 error; 2 usage; 3 finished, but a gate failed; 75 stopped in time.", ""]
    for name, command in command_tree():
        parts += [f"## maescreen {name}", "", str(command.help or "").strip(), ""]
        parts += _table(("argument or option", "default", "meaning"), map(_parameter, _parameters(command)))
        parts += [""]
    return _page("Commands", parts)


def command_tree() -> list[tuple[str, Any]]:
    """Return every command by its full name, `model info` for one in a group."""
    found: list[tuple[str, Any]] = []
    for name, command in typer.main.get_command(cli.app).commands.items():  # pyrefly: ignore
        inner = getattr(command, "commands", None)
        found += [(f"{name} {one}", its) for one, its in inner.items()] if inner else [(name, command)]
    return found


def _parameters(command: Any) -> list[Any]:
    return [one for one in command.params if one.name != "help"]


def _parameter(one: Any) -> tuple[str, ...]:
    if one.param_type_name == "argument":
        shown = one.metavar or one.name.upper()
    else:
        value = "" if one.is_flag else f" {one.metavar or 'VALUE'}"
        shown = f"{', '.join([*one.opts, *one.secondary_opts])}{value}"
    default = one.default if one.default not in (None, False, ()) and not callable(one.default) else ""
    return f"`{shown}`", "required" if one.required else str(default), str(getattr(one, "help", "") or "")


# ---------------------------------------------------------------- tables, reasons, results


def table_columns() -> str:
    """Return the columns of every table that flows between stages."""
    parts = ["Every table is a Parquet file whose columns are checked when it is written and when it is read.", ""]
    for table in vars(tables).values():
        if isinstance(table, tables.Table):
            order = f"Ordered by {', '.join(f'`{name}`' for name in table.order)}." if table.order else "In no order."
            parts += [f"## {table.name}", "", order, ""]
            rows = ((f"`{c.name}`", _arrow(c), "yes" if c.optional else "", c.meaning) for c in table.columns)
            parts += [*_table(("column", "kind", "may be missing", "meaning"), rows), ""]
    return _page("Tables", parts)


def _arrow(column: tables.Column) -> str:
    kind = str(column.type)
    return f"list of {ARROW[str(column.type.value_type)]}s" if kind.startswith("list") else ARROW[kind]


def quarantine() -> str:
    """Return the reasons for which a file is refused, and the flags of those that are not."""
    reasons = ((f"`{name}`", text) for name, text in REASONS.items() if name not in FLAGS)
    parts = [
        "Two closed lists. A file has at most one reason, and then it is not used; an image can have several flags.",
        "",
        *("## Reasons for quarantine", "", *_table(("reason", "meaning"), reasons), ""),
        *("## Quality flags", "", "A flag that `ingest.refuse` names is a reason for quarantine, too.", ""),
        *_table(("flag", "meaning", "may be refused"),
                ((f"`{name}`", text, "yes" if name in REASONS else "no") for name, text in FLAGS.items())),
    ]  # fmt: skip
    return _page("Reasons and flags", parts)


def results() -> str:
    """Return the fields of results.json."""
    parts = [
        f"What `maescreen predict` writes. Schema `{SCHEMA}`; each field's meaning stands in the file, too, under",
        "`meaning`.",
        "",
        *("## A row of `results`", "", *_table(("field", "meaning"), ((f"`{n}`", t) for n, t in MEANINGS.items())), ""),
        *("## Why a study is not assessable", ""),
        *_table(("reason", "meaning"), ((f"`{n}`", t) for n, t in NOT_ASSESSABLE.items())),
    ]
    return _page("results.json", parts)


# ---------------------------------------------------------------- keys


def keys() -> str:
    """Return what the key of each stage depends on."""
    parts = [
        "The key of an artifact is a hash of what stands here: the stage's section of the config, the keys of the",
        "artifacts that it reads, the digests of its sources, and its code. Comments, docstrings and formatting are no",
        "part of the code. The key of an artifact counts as a whole, whichever of its files are read; a stage can open",
        "no other files.",
        "",
        "The stages of an external test set are the same, with its own studies, labels and card; `split` has one",
        "source more, which says that the studies are a test set. `report` has two kinds of sources more: the card of",
        "each external set, and each step that `--keep` kept, with its reason.",
        "",
        "Images of `data.unlabelled` go through `ingest` and `preprocess` in the same way, with what",
        "`data.unlabelled_patients` says of patients; `split@unlabelled` is the work of another function, in the last",
        "row. An empty `data.unlabelled`, and a run that pretrains nothing, has none of these steps and none of these",
        "reads: its keys are those of a config that does not name it.",
        "",
        *_table(("stage", "settings", "reads of earlier stages", "sources"), map(_dependencies, (*STAGES, KEEP_APART))),
        "",
        "## Sources",
        "",
        *_table(("source", "what it is a digest of"), ((f"`{name}`", text) for name, text in SOURCES.items())),
        "",
        "A source that a run does not use (`imported_weights`, `start_weights`, `fonts`, `further_labels`, `masks`,",
        "`channels`, `exam`) is no part of its keys.",
        "",
        "## Code",
        "",
        "Modules that a stage uses at run time, directly or not, by room; templates count by their bytes.",
        "",
    ]
    for stage in (*STAGES, KEEP_APART):
        parts += [f"### {stage.step}", "", *_table(("room", "modules"), _modules(stage)), ""]
    return _page("What each key depends on", parts)


SOURCES = {
    "studies": "paths and contents of the studies that `data.include` and `data.exclude` choose",
    "patients": "the columns of the label table that say whose an image is",
    "join": "which column joins the label table to images",
    "expected": "`expected` of the card",
    "channels": "`channels` of the card, where it lists any",
    "exam": "`exam` of the card and the columns `view` and `laterality` of the label table, where the card names any",
    "key": "a fingerprint of the pseudonymisation key",
    "labels": "the label table, every byte",
    "label": "`label` of the card without its `mask`",
    "masks": "`label.mask` of the card, and the column of the label table that it names",
    "further_labels": "`further_labels` of the card",
    "columns": "`columns` of the card",
    "splits": "`splits` of the card",
    "imported_weights": "the file `data.imported_weights`",
    "start_weights": "the content of `data.imported_weights`, where `pretrain.start` is imported",
    "card": "the whole card",
    "fonts": "the fonts in `report.fonts`",
}


def _dependencies(stage: Stage) -> tuple[str, ...]:
    read = "<br>".join(f"{name}: {', '.join(f'`{one}`' for one in files)}" for name, files in stage.reads.items())
    if stage.of_external:
        other = "; ".join(f"{name}: {', '.join(f'`{o}`' for o in files)}" for name, files in stage.of_external.items())
        read += f"<br>of each external set: {other}"
    if stage.of_unlabelled:
        own = "; ".join(f"{name}: {', '.join(f'`{o}`' for o in files)}" for name, files in stage.of_unlabelled.items())
        read += f"<br>of `data.unlabelled`: {own}"
    if unknown := [name for name in stage.sources if name not in SOURCES]:
        raise ValueError(f"docs/generate.py: say in SOURCES what {', '.join(unknown)} is")
    return f"`{stage.step}`", f"`{stage.name}`", read, ", ".join(f"`{name}`" for name in stage.sources)


def _modules(stage: Stage) -> Rows:
    rooms: dict[str, list[str]] = {}
    for name in code_digests(f"pipeline.stages.{stage.works}"):
        room, _, rest = name.partition("/" if "/" in name else ".")
        rooms.setdefault(room, []).append(f"`{rest or '__init__'}`")
    for room, found in sorted(rooms.items()):
        yield f"`{room}`", ", ".join(found)


# ---------------------------------------------------------------- Markdown


def _page(title: str, parts: Sequence[str]) -> str:
    return "\n".join([NOTE, "", f"# {title}", "", *parts]).rstrip() + "\n"


def _table(head: Sequence[str], rows: Iterator[tuple[str, ...]] | Sequence[tuple[str, ...]]) -> list[str]:
    lines = [f"| {' | '.join(_cell(one) for one in row)} |" for row in rows]
    return [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}", *lines] if lines else ["Takes nothing."]


def _cell(text: str) -> str:
    """Return a text for one cell; what would be markup outside of code is escaped."""
    parts = " ".join(text.split()).replace("|", "\\|").split("`")
    return "`".join(part if at % 2 else part.replace("*", "\\*") for at, part in enumerate(parts))


def _sentence(text: str | None) -> str:
    return " ".join((text or "").split())


def main() -> int:
    """Write the pages, or with --check name those that are not what the code says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 when a page is not current")
    check = parser.parse_args().check
    old = [name for name, text in pages().items() if not _same(FOLDER / name, text)]
    for name in old:
        if not check:
            (FOLDER / name).parent.mkdir(parents=True, exist_ok=True)
            (FOLDER / name).write_text(pages()[name], "utf-8")
        print(f"{'not current' if check else 'written'}: docs/{name}")
    return 1 if check and old else 0


def _same(path: Path, text: str) -> bool:
    return path.is_file() and path.read_text("utf-8") == text


if __name__ == "__main__":
    raise SystemExit(main())
