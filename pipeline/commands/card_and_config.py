"""The text of a dataset card and of a config, as `maescreen init` writes them."""

from __future__ import annotations

import json
import os
import re
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.commands.fingerprint import Fingerprint
from pipeline.commands.label_table import Described, quoted
from pipeline.commands.proposal import Chosen, Proposal
from pipeline.commands.studies_glance import WINDOW_ADVICE
from pipeline.orchestration.estimate import duration
from pipeline.settings.card import NOT_STATED, StudyStatements

WIDTH = 120
COMMENT_AT = 35


def _further(described: Described) -> str:
    """Return the card's lines about other columns of labels, none of them in force until somebody defines it."""
    if not described.others:
        return ""
    lines = ["# further_labels:                     # other columns that look like labels; define those that you want"]
    for column, (positive, negative) in described.others.items():
        plain = re.sub(r"[^a-z0-9]+", "_", column.lower()).strip("_") or "label"
        lines.append(
            f"#   - {{id: {plain}, name: {quoted([column])[1:-1]}, column: {quoted([column])[1:-1]}, "
            f"positive: {quoted(positive)}, negative: {quoted(negative)}, definition: not stated, "
            "reference_standard: not stated}"
        )
    return "\n".join(lines) + "\n"


def card_text(name: str, described: Described, studies: Fingerprint) -> str:
    """Return the card: what table and files say, and what only a person can."""
    named = {field: quoted([column])[1:-1] for field, column in described.joins.items()}
    columns = "\n".join(f"  {name}: {value}" for name, value in {**named, **described.rules}.items())
    unused = f"\n  unused: {quoted(described.unused)}" if described.unused else ""
    expected = _expected(studies)
    return f"""# What this dataset is. The report prints it; replace every "not stated" with what a reader must know.
#
# What the files state, as far as they were opened:
{_comments(studies.lines())}
name: {name}
title: not stated
source: not stated
licence: not stated
attribution: not stated
identifiers: real                    # real: the pseudonymisation key must be secret; synthetic: headers are made up
synthetic: nothing
columns:                             # columns of the label table
{columns}
  label: {quoted([described.label])[1:-1]}
label:
  name: the condition                # as a reader would say it: "pneumonia"
  definition: not stated             # what makes a patient positive
  reference_standard: not stated     # who decided, how, blinded to what
  positive: {quoted(described.positive)}
  negative: {quoted(described.negative)}{unused}
{_further(described)}intended_use:
  condition: not stated
  population: not stated
  user: not stated
  place: not stated                  # place in the pathway
  not_for: []
{expected}# Axes that training may mirror: horizontal, vertical, depth; none if sides matter.
symmetric_axes: []
known_traps: []
study:                               # asked for by reporting guidelines; the report lists what is missing
{_statements()}
"""


def _statements() -> str:
    """Return a line per statement of the card, with what it is about."""
    fields = StudyStatements.model_fields.items()
    return "\n".join(f"  {f'{name}: {NOT_STATED}':<35}# {field.description}" for name, field in fields)


def _comments(lines: Sequence[str]) -> str:
    wrapped = [part for line in lines for part in textwrap.wrap(line, WIDTH - 6, subsequent_indent="  ")]
    return "\n".join(f"#   {line}" for line in wrapped)


def _expected(studies: Fingerprint) -> str:
    """Return the card's section `expected`: what every file states alike, so that another one is flagged."""
    names = {"modality": "modalities", "view": "views", "body_part": "body_parts"}
    alike = {names[name]: [*values] for name, values in studies.stated.items() if name in names and len(values) == 1}
    if not alike:
        return ""
    rows = "\n".join(f"  {name}: {quoted(values)}" for name, values in alike.items())
    return (
        f"expected:                            # every file opened states this; one that differs is flagged\n{rows}\n"
    )


# ---------------------------------------------------------------- config


def config_text(
    name: str,
    folder: Path,
    labels: Path,
    card: Path,
    config: Path,
    proposal: Proposal,
    remarks: Sequence[str],
    ct: bool,
) -> str:
    """Return the config: paths, and every setting of the proposal with its reason; `remarks` stand at the top."""

    def relative(path: Path) -> str:
        return os.path.relpath(path.resolve(), config.parent.resolve()).replace("'", "''")

    expected = f"expected: {duration(proposal.total_s)} of a budget of {proposal.minutes:g} minutes, on this machine"
    return f"""# maescreen run {config}
#
{_comments([expected, *remarks])}
#
# Every setting not named here has its default; `configs/chest_xray.yaml` shows and explains all of them.
project: {name}
data:
  studies: ['{relative(folder)}']
  labels: '{relative(labels)}'
  card: '{relative(card)}'
  key_file: '~/.config/maescreen/{name}.key'   # secret; made on the first run; back it up, never share it
{_sections(proposal.settings, ct)}report:
  title: A model learnt from {name}   # at the top of page one; write what it is for
"""


def _sections(settings: Sequence[Chosen], ct: bool) -> str:
    """Return the settings as YAML, each with its reason beside it, or above it where there is no room."""
    lines: list[str] = []
    open_sections: list[str] = []
    for one in settings:
        *sections, last = one.key.split(".")
        shared = 0
        while shared < min(len(sections), len(open_sections)) and sections[shared] == open_sections[shared]:
            shared += 1
        for depth in range(shared, len(sections)):
            lines.append(f"{'  ' * depth}{sections[depth]}:")
        open_sections = sections
        indent = "  " * len(sections)
        lines += _with_reason(f"{indent}{last}: {_yaml(one.value)}", one.reason, indent)
        if one.key == "preprocess.image_size" and ct:
            lines += WINDOW_ADVICE.rstrip("\n").split("\n")
    return "\n".join(lines) + "\n"


def _with_reason(setting: str, reason: str, indent: str) -> list[str]:
    beside = f"{setting:<{COMMENT_AT}}# {reason}" if len(setting) < COMMENT_AT else f"{setting}   # {reason}"
    if len(beside) <= WIDTH:
        return [beside]
    above = textwrap.wrap(reason, WIDTH - len(indent) - 2)
    return [*(f"{indent}# {line}" for line in above), setting]


def _yaml(value: Any) -> str:
    """Return a value in YAML's flow style; JSON is that, but for its quotes round names."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name}: {_yaml(own)}" for name, own in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_yaml, value)) + "]"
    return value if isinstance(value, str) else json.dumps(value)
