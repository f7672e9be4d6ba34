"""model_card.md: one page about the model, in the order of Mitchell et al. (FAT* 2019), from the report's evidence.

Its sentences about results are those of page one, so that the two cannot disagree.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from pipeline.reporting.document import RESEARCH_USE, Block, Box, ended, shortened
from pipeline.reporting.evidence import Evidence
from pipeline.reporting.numbers import count, interval
from pipeline.reporting.sections.deployment import packaged
from pipeline.reporting.sections.localisation import sentence
from pipeline.reporting.sections.readings import how_often_read
from pipeline.reporting.sections.summary import AT_THE_END, limits, summary
from pipeline.store.wording import counted

LONGEST, TRAPS = 300, 6
# What Markdown or HTML would read as more than text; bars would divide a table's cells.
_MARKUP = re.compile(r"([\\`*_{}\[\]<>#|~$&!])")


def text(e: Evidence) -> str:
    """Return the card as Markdown. Text from card and data is text in it; without a usable threshold it has none."""
    label, use = e.card["label"], e.card["intended_use"]
    lines = [
        f"# {_plain(e.title)}",
        "",
        f"{RESEARCH_USE}. {e.date}. Questions to: {_plain(e.contact)}",
        "",
        *_listed("What it judges", f"{label['name']}: {label['definition']}"),
        *_listed("Reference standard", label["reference_standard"]),
        *_listed("Model", _model(e)),
        *_listed("Trained on", _trained_on(e)),
        "",
        "## Intended use",
        "",
        *_listed("People", use["population"]),
        *_listed("User, place", f"{use['user']}; {use['place']}"),
        *_listed("Not for", "; ".join(use["not_for"]) or "not stated"),
        "",
        "## What is promised, and what test patients showed",
        "",
        *_boxes(summary(e).blocks),
        *_listed("AUC", interval(e.metrics["discrimination"]["auc"], why=AT_THE_END)),
        *(_listed("Where the finding lies", where) if (where := sentence(e)) else []),
        *_listed("Test patients", _tested(e)),
        *_listed("How often they were read", how_often_read(e)),
        "",
        "## Limits",
        "",
        *(f"- {_plain(item)}" for item in limits(e).items),
        *(f"- {_plain(shortened(trap, LONGEST))}" for trap in e.card["known_traps"][:TRAPS]),
        *_rest(len(e.card["known_traps"]) - TRAPS),
        "",
        "## Provenance",
        "",
        *_listed("Packaged model", packaged(e)),
        *_listed("Artifacts", ", ".join(f"{step} {record['key'][:12]}" for step, record in e.records.items())),
        *_listed("Data", f"{e.card['source']}; licence {e.card['licence']}; {e.card['attribution']}"),
    ]
    return "\n".join(lines) + "\n"


def _listed(what: str, words: str) -> list[str]:
    return [f"- **{what}:** {_plain(shortened(words, LONGEST))}"]


def _boxes(blocks: Iterable[Block]) -> list[str]:
    return [f"- **{_plain(ended(b.title))}** {_plain(' '.join(b.lines))}" for b in blocks if isinstance(b, Box)]


def _rest(n: int) -> list[str]:
    return [f"- {counted(n, 'more known trap')}: section 2 of the report."] if n > 0 else []


def _model(e: Evidence) -> str:
    arm = e.finetune["arms"][e.reported_arm]
    return (
        f"{e.arm_name(e.reported_arm)}: {arm['description']}; {counted(len(e.metrics['seeds']), 'network')} of "
        f"{counted(arm['parameters'], 'parameter')}"
    )


def _trained_on(e: Evidence) -> str:
    trained, positives = e.finetune["train_patients"], e.finetune["train_positive_patients"]
    return (
        f"{counted(trained, 'patient')}, {count(positives)} with the condition, "
        f"{counted(e.finetune['train_images'], 'image')}"
    )


def _tested(e: Evidence) -> str:
    return f"{counted(e.metrics['patients'], 'patient')}, {count(e.metrics['positives'])} with the condition"


def _plain(words: str) -> str:
    """Return text on one line that Markdown shows as it is."""
    return _MARKUP.sub(r"\\\1", " ".join(words.split()))
