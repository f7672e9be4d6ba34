"""model_card.md: one page about the model, in the order of Mitchell et al. (FAT* 2019), from the report's evidence.

What it says of the model is said by `inference/model_card.py`, which writes the packaged model's card, too; what it
says of results is said by page one. So none of the three can disagree with another.
"""

from __future__ import annotations

from collections.abc import Iterable

from pipeline.inference.model_card import (
    Facts,
    about,
    another_threshold,
    data,
    listed,
    tested,
    traps,
    use,
)
from pipeline.inference.plain_text import RESEARCH_USE, ended, markdown
from pipeline.reporting.document import Block, Box
from pipeline.reporting.evidence import Evidence
from pipeline.reporting.sections.deployment import packaged
from pipeline.reporting.sections.localisation import sentence
from pipeline.reporting.sections.readings import how_often_read
from pipeline.reporting.sections.summary import limits, summary
from pipeline.store.wording import counted

TRAPS = 6


def text(e: Evidence) -> str:
    """Return the card as Markdown. Text from card and data is text in it; without a usable threshold it has none."""
    told = facts(e)
    lines = [
        f"# {markdown(e.title)}",
        "",
        f"{RESEARCH_USE}. {e.date}. Questions to: {markdown(e.contact)}",
        "",
        *about(told),
        "",
        "## Intended use",
        "",
        *use(told),
        "",
        "## What is promised, and what test patients showed",
        "",
        *_boxes(summary(e).blocks),
        *tested(told, _another(e, told)),
        *(listed("Where the finding lies", where) if (where := sentence(e)) else []),
        *listed("How often they were read", how_often_read(e)),
        "",
        "## Limits",
        "",
        *(f"- {markdown(item)}" for item in limits(e).items),
        *traps(told, TRAPS),
        *_rest(len(told.traps) - TRAPS),
        "",
        "## Provenance",
        "",
        *_scope(e),
        *listed("Packaged model", packaged(e)),
        *listed("Artifacts", ", ".join(f"{step} {record['key'][:12]}" for step, record in e.records.items())),
        *data(told),
    ]
    return "\n".join(lines) + "\n"


def facts(e: Evidence) -> Facts:
    """Return what the evidence tells of the model: the same that its package tells."""
    arm, point = e.finetune["arms"][e.reported_arm], e.point
    return Facts(
        label=e.card["label"],
        network={
            "arm": e.reported_arm,
            "description": arm["description"],
            "seeds": e.metrics.seeds,
            "parameters_per_network": arm["parameters"],
        },
        trained_on={
            name: e.finetune[f"train_{found}"]
            for name, found in (("patients", "patients"), ("positives", "positive_patients"), ("images", "images"))
        }
        | {"unlabelled": e.pretraining.summary.get("unlabelled") if e.pretraining else None},
        use=e.card["intended_use"],
        # A package may name more than the dataset card does.
        not_for=e.card["intended_use"]["not_for"] if e.packaged is None else e.packaged["not_for"],
        test={
            "patients": e.metrics.patients,
            "positives": e.metrics.positives,
            "auc": e.metrics.discrimination.auc.to_dict(),
            "recall": point and point.recall.to_dict(),
            "specificity": point and point.specificity.to_dict(),
            "threshold_hex": point and point.threshold.hex(),
        },
        traps=e.card["known_traps"],
        data=e.card,
    )


def _another(e: Evidence, told: Facts) -> bool:
    """Return whether the threshold to use is another than the one that was tested."""
    if e.packaged is not None:
        return another_threshold(told.test, e.packaged["rule"])
    return e.another_to_use


def _scope(e: Evidence) -> list[str]:
    """Return what the packaged model promises, in its own words."""
    return [] if e.packaged is None or e.point is None else [f"- {markdown(line)}" for line in e.packaged["scope"]]


def _boxes(blocks: Iterable[Block]) -> list[str]:
    return [f"- **{markdown(ended(b.title))}** {markdown(' '.join(b.lines))}" for b in blocks if isinstance(b, Box)]


def _rest(n: int) -> list[str]:
    return [f"- {counted(n, 'more known trap')}: section 2 of the report."] if n > 0 else []
