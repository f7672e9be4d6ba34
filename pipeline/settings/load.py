"""From a YAML file and `section.key=value` overrides to a checked Config and Card, or one error that lists it all."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from pipeline.settings.card import Card
from pipeline.settings.channels import channel_problems
from pipeline.settings.common import ConfigError, Settings
from pipeline.settings.config import Config
from pipeline.settings.where import Studies

MAX_BYTES = 1_000_000
COMMAND_LINE = "command line"

# An override, and the comma before one: other commas belong to lists, texts and names of files.
SETTING = re.compile(r"[A-Za-z_]\w*(\.\w+)*=")
COMMA = re.compile(rf",(?={SETTING.pattern.replace('(', '(?:', 1)})")

# 010 is 8 and 1:30 is 90 in YAML 1.1, and neither in YAML 1.2.
AMBIGUOUS_NUMBER = re.compile(r"[-+]?(0[0-9_]|[0-9_.]*:)")
LARGEST_INTEGER = 2**63 - 1

Loc = tuple[str | int, ...]


class _Loader(yaml.SafeLoader):
    """SafeLoader that reads 1e-3 as a number (YAML 1.2) and refuses aliases, duplicate keys, and 010 and 1:30."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            raise yaml.composer.ComposerError(None, None, "aliases are not allowed", event.start_mark)
        return super().compose_node(parent, index)

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        number = super().construct_yaml_int(self._plain_number(node))
        if abs(number) > LARGEST_INTEGER:
            said = "a whole number of more than 64 bits, which nothing here counts to"
            raise yaml.constructor.ConstructorError(None, None, said, node.start_mark)
        return number

    def construct_yaml_float(self, node: yaml.ScalarNode) -> float:
        return super().construct_yaml_float(self._plain_number(node))

    def _plain_number(self, node: yaml.ScalarNode) -> yaml.ScalarNode:
        """Return the node. Raises ConstructorError where YAML 1.1 reads it to the base of 8 or 60."""
        if AMBIGUOUS_NUMBER.match(node.value):
            said = f"{node.value} can be read in two ways; write the number without leading zeros and colons"
            raise yaml.constructor.ConstructorError(None, None, said, node.start_mark)
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = [key.value for key, _ in node.value]
        twice = next((key for key, _ in node.value if keys.count(key.value) > 1), None)
        if twice is not None:
            raise yaml.constructor.ConstructorError(None, None, f"key {twice.value} stands twice", twice.start_mark)
        return super().construct_mapping(node, deep)


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)
_Loader.add_constructor("tag:yaml.org,2002:float", _Loader.construct_yaml_float)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


def load(path: Path, overrides: list[str] | None = None) -> tuple[Config, Card]:
    """Read a config, apply overrides, read its card and check that the files it names exist.

    Relative paths in the config become absolute, taken from the folder of the config file.
    Raises ConfigError listing every problem, each with file, line and what is allowed.
    """
    config, lines, problems = _config(path, overrides)
    card: Card | None = None
    if config is not None:
        config = _absolute(config, path.resolve().parent)
        problems += _missing_files(config, path, lines) + _overlapping(config, path, lines)
        card = _card(config.data.card, problems)
        for external in config.data.external:
            other = _card(external.card, problems)
            if card and other and [c.name for c in card.channels] != [c.name for c in other.channels]:
                problems.append(f"{external.card}: channels: names and order must be those of {config.data.card}")
            if card and other and (card.identifiers, other.identifiers) == ("synthetic", "real"):
                problems.append(
                    f"{external.card}: identifiers are real, but the key of a run on synthetic ones may be public; use "
                    "a secret data.key_file and a data.card that says real"
                )
        if card is not None:
            problems += _forbidden_flips(config, card, path, lines) + channel_problems(config, card)
    if problems or config is None or card is None:
        raise ConfigError("\n".join(problems))
    return config, card


def load_settings(path: Path, overrides: list[str] | None = None) -> Config:
    """Read a config as `load` does, without the card and without looking for the files it names.

    Raises ConfigError listing every problem.
    """
    config, _, problems = _config(path, overrides)
    if problems or config is None:
        raise ConfigError("\n".join(problems))
    return _absolute(config, path.resolve().parent)


def _config(path: Path, overrides: list[str] | None) -> tuple[Config | None, dict[Loc, int], list[str]]:
    """Return a config as it is written, the lines of its settings, and what is wrong with it."""
    content, lines = _read(path)
    problems = _override(content, lines, overrides or [])
    return _validate(Config, content, lines, path, problems), lines, problems


def _forbidden_flips(config: Config, card: Card, path: Path, lines: dict[Loc, int]) -> list[str]:
    problems = []
    for stage in ("pretrain", "finetune"):
        axes = [axis for axis in getattr(config, stage).augmentation.flips if axis not in card.symmetric_axes]
        if axes:
            loc = (stage, "augmentation", "flips")
            problems.append(
                f"{_place(loc, lines, path)}: {'.'.join(loc)}: the card does not list {' and '.join(axes)} in "
                "symmetric_axes; remove it here, or add it there if a mirrored image could be another patient's"
            )
    return problems


def read_card(path: Path) -> Card:
    """Return a dataset card. Raises ConfigError listing every problem."""
    problems: list[str] = []
    card = _card(path, problems)
    if card is None:
        raise ConfigError("\n".join(problems) or f"{path}: no such file")
    return card


def _card(path: Path, problems: list[str]) -> Card | None:
    if not path.is_file():
        return None  # named among the files that are missing
    content, lines = _read(path)
    return _validate(Card, content, lines, path, problems)


def _read(path: Path) -> tuple[dict[str, Any], dict[Loc, int]]:
    try:
        text = path.read_text("utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise ConfigError(f"{path} is a folder; name a YAML file in it") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as text ({type(error).__name__})") from error
    if len(text) > MAX_BYTES:
        raise ConfigError(f"{path}: larger than {MAX_BYTES} characters; this is not a configuration")
    try:
        node = yaml.compose(text, Loader=_Loader)
        content = yaml.load(text, Loader=_Loader)  # noqa: S506 -- a SafeLoader
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else "?"
        raise ConfigError(f"{path}:{line}: {error.problem}") from error
    except (yaml.YAMLError, ValueError) as error:  # a ValueError, for instance, of a date that there is not
        raise ConfigError(f"{path}: not YAML") from error
    except RecursionError:
        raise ConfigError(f"{path}: nested too deeply; this is not a configuration") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: expected sections like 'data:' and 'pretrain:'")
    lines: dict[Loc, int] = {}
    _number(node, (), lines)
    return content, lines


def _number(node: Any, loc: Loc, lines: dict[Loc, int]) -> None:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            lines[(*loc, key.value)] = key.start_mark.line + 1
            _number(value, (*loc, key.value), lines)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            lines[(*loc, index)] = value.start_mark.line + 1
            _number(value, (*loc, index), lines)


def divide(words: Sequence[str]) -> list[tuple[Path, list[str]]]:
    """Return the config files among some words, each with the overrides that stand behind it.

    A file's own overrides may also follow it in one word, each after a comma. Raises ConfigError when overrides come
    first.
    """
    runs: list[tuple[Path, list[str]]] = []
    for word in words:
        if Path(word).exists() or not SETTING.match(word):
            file, *overrides = [word] if Path(word).exists() else COMMA.split(word)
            runs.append((Path(file), overrides))
        elif runs:
            runs[-1][1].append(word)
        else:
            raise ConfigError(f"{COMMAND_LINE}: {word!r} stands before any config file; write it behind its own")
    return runs


def _override(content: dict[str, Any], lines: dict[Loc, int], overrides: list[str]) -> list[str]:
    problems = []
    for override in overrides:
        dotted, equals, text = override.partition("=")
        *sections, last = dotted.split(".")
        if not equals or not all([*sections, last]):
            problems.append(f"{COMMAND_LINE}: {override!r}: expected section.key=value")
            continue
        node: Any = content
        for depth, section in enumerate(sections, 1):
            if isinstance(node, dict):
                if node.get(section) is None:
                    node[section] = {}
                    lines[tuple(sections[:depth])] = 0
                node = node[section]
        if not isinstance(node, dict):
            problems.append(f"{COMMAND_LINE}: {override!r}: {'.'.join(sections)} has no settings of its own")
            continue
        loc = (*sections, last)
        try:
            node[last] = _value(text, Config, loc)
        except (yaml.YAMLError, ValueError):
            problems.append(f"{COMMAND_LINE}: {override!r}: the value is not YAML")
        for below in [known for known in lines if known[: len(loc)] == loc]:
            del lines[below]
        lines[loc] = 0
    return problems


def _value(text: str, model: type[BaseModel], loc: Loc) -> Any:
    """Return what an override says: texts and paths as they are typed, unless quoted or null; all else as YAML."""
    try:
        value = yaml.load(text, Loader=_Loader)  # noqa: S506 -- a SafeLoader
    except (yaml.YAMLError, ValueError):
        if _is_text(model, loc):
            return text
        raise
    quoted = isinstance(value, str) and text.strip()[:1] in ("'", '"')
    null = text.strip().lower() in ("", "null", "~")
    return text if _is_text(model, loc) and not quoted and not null else value


def _is_text(model: type[BaseModel], loc: Loc) -> bool:
    """Say whether a setting is a text or a path, or either of them and null."""
    section = _section(model, loc[:-1])
    field = section.model_fields.get(str(loc[-1])) if section else None
    if field is None:
        return False
    union = isinstance(field.annotation, UnionType)
    kinds = {*get_args(field.annotation)} if union else {field.annotation}
    return bool(kinds & {str, Path}) and kinds <= {str, Path, NoneType}


def _validate(model: type, content: dict, lines: dict[Loc, int], path: Path, problems: list[str]) -> Any:
    try:
        # Through JSON, where strict mode still takes a string as a path but no string as a number.
        return model.model_validate_json(json.dumps(content, default=str))
    except ValidationError as error:
        said: set[str] = set()
        for detail in error.errors(include_url=False):
            problem, known = _describe(model, detail, lines, path)
            problems.append(problem if known in said else problem + known)
            said.add(known)
        return None


def _describe(model: type[BaseModel], detail: Any, lines: dict[Loc, int], path: Path) -> tuple[str, str]:
    """Return what is wrong, and behind it the names that are known there: they are listed once."""
    loc: Loc = detail["loc"]
    place = _place(loc, lines, path)
    name = ".".join(map(str, loc))
    if detail["type"] == "missing":
        return f"{place}: {name} is missing", ""
    if detail["type"] == "extra_forbidden":
        section = _section(model, loc[:-1])
        siblings = sorted(section.model_fields) if section else []
        near = difflib.get_close_matches(str(loc[-1]), siblings, n=1)
        hint, known = (f"; did you mean {near[0]}?", "") if near else ("", f"; known here: {', '.join(siblings)}")
        return f"{place}: {name} is not a setting{hint}", known
    message = detail["msg"].removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    given = detail["input"]
    got = f" (got {given!r})" if not isinstance(given, dict) else ""
    if detail["type"] == "string_type" and isinstance(given, bool | int | float):
        got += ": write it in quotes"  # NO, on and 1 are texts only there
    return f"{place}: {name + ': ' if name else ''}{message}{got}", ""


def _place(loc: Loc, lines: dict[Loc, int], path: Path) -> str:
    known = next((loc[:end] for end in range(len(loc), 0, -1) if loc[:end] in lines), None)
    return f"{path}" if known is None else f"{path}:{lines[known]}" if lines[known] else COMMAND_LINE


def _section(model: type[BaseModel], loc: Loc) -> type[BaseModel] | None:
    """Return the settings at a place; None where there is one value, or nothing."""
    for part in loc:
        field = model.model_fields.get(str(part))
        if field is None or not (isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)):
            return None
        model = field.annotation
    return model


def _absolute(config: Config, folder: Path) -> Config:
    def here(path: Path) -> Path:
        return (folder / path.expanduser()).resolve()

    def if_any(path: Path | None) -> Path | None:
        return None if path is None else here(path)

    def placed(data: Studies) -> dict[str, Any]:
        return {"studies": [here(p) for p in data.studies], "labels": here(data.labels), "card": here(data.card)}

    data = config.data
    of_data = placed(data) | {
        "key_file": here(data.key_file),
        "imported_weights": if_any(data.imported_weights),
        "external": [one.model_copy(update=placed(one)) for one in data.external],
        "unlabelled": [here(path) for path in data.unlabelled],
        "unlabelled_patients": if_any(data.unlabelled_patients),
    }
    return config.model_copy(
        update={
            "store": here(config.store),
            "reports": here(config.reports),
            "report": config.report.model_copy(update={"fonts": if_any(config.report.fonts)}),
            "data": data.model_copy(update=of_data),
        }
    )


def _datasets(config: Config) -> list[tuple[Loc, Studies]]:
    return [(("data",), config.data), *((("data", "external", i), one) for i, one in enumerate(config.data.external))]


def _missing_files(config: Config, path: Path, lines: dict[Loc, int]) -> list[str]:
    named: list[tuple[Loc, Path]] = []
    for loc, data in _datasets(config):
        named += [((*loc, "studies", i), path) for i, path in enumerate(data.studies)]
        named += [((*loc, "labels"), data.labels), ((*loc, "card"), data.card)]
    named += [(("data", "unlabelled", i), path) for i, path in enumerate(config.data.unlabelled)]
    if config.data.unlabelled_patients is not None:
        named.append((("data", "unlabelled_patients"), config.data.unlabelled_patients))
    if config.starts_from_weights and config.data.imported_weights is not None:
        named.append((("data", "imported_weights"), config.data.imported_weights))
    if config.report.fonts is not None:
        named.append((("report", "fonts"), config.report.fonts))
    return [
        f"{_place(loc, lines, path)}: {'.'.join(map(str, loc))}: no such file or folder: {file}"
        for loc, file in named
        if not file.exists()
    ]


def _overlapping(config: Config, path: Path, lines: dict[Loc, int]) -> list[str]:
    """Name each entry of `studies` that holds files of another one of the same dataset: they would be read twice."""
    places: list[tuple[Loc, Sequence[Path]]] = [((*loc, "studies"), data.studies) for loc, data in _datasets(config)]
    places.append((("data", "unlabelled"), config.data.unlabelled))
    return [
        f"{_place((*loc, at), lines, path)}: {'.'.join(map(str, loc))}: entry {at + 1} and entry "
        f"{before + 1} hold the same files; leave one out"
        for loc, roots in places
        for at, root in enumerate(roots)
        for before, other in enumerate(roots[:at])
        if root == other or root in other.parents or other in root.parents
    ]


def later_defaults(model: type[Settings] = Config, prefix: str = "") -> dict[str, Any]:
    """Return the settings that a dump leaves out at their default, see `Settings.LATER`, as `flatten` writes them."""
    found = {f"{prefix}{name}": model.model_fields[name].get_default() for name in sorted(model.LATER)}
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Settings):
            found |= later_defaults(field.annotation, f"{prefix}{name}.")
    return found


def flatten(settings: Any, prefix: str = "") -> dict[str, Any]:
    """Flatten nested settings to `section.key: value`; lists become one JSON text."""
    if isinstance(settings, dict):
        return {
            name: value
            for key, item in settings.items()
            for name, value in flatten(item, f"{prefix}.{key}" if prefix else str(key)).items()
        }
    return {prefix: json.dumps(settings) if isinstance(settings, list) else settings}
