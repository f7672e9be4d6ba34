"""MODEL_CARD.md: one page about a packaged model, in the order of Mitchell et al. (FAT* 2019), from model.json."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def text(content: Mapping[str, Any]) -> str:
    """Return the card as Markdown; what is not known is said to be unknown."""
    card, rule, test = content["card"], content["rule"], content["test"]
    label, use = content["labels"][0], content["card"]["intended_use"]
    population = content["population"]
    lines = [
        f"# {content['title'].strip()}",
        "",
        "Research use only; no medical device.",
        "",
        f"- **What it judges:** {label['name']}: {_line(label['definition'])}",
        f"- **Reference standard:** {_line(label['reference_standard'])}",
        f"- **Model:** {content['network']['description']}; {len(content['network']['seeds'])} networks of "
        f"{content['network']['parameters_per_network']:,} parameters, arm {content['network']['arm']}",
        f"- **Trained on:** {population['images']} images of {population['patients']} patients. "
        f"{_line(card['source'])}",
        f"- **Meant for:** {_line(use['population'])}; read by {_line(use['user'])}; {_line(use['place'])}",
        f"- **Not for:** {'; '.join(map(_line, content['not_for'])) or 'not stated'}",
        "",
        "## Operating point",
        "",
        *(_points(rule) if rule["usable"] else ["None: the model gives scores, never decisions.", ""]),
        *(f"- {sentence}" for sentence in content["scope"]),
        "",
        "## On the locked test set",
        "",
        f"{test['patients']} patients, {test['positives']} with the condition. AUC {_interval(test['auc'])}. "
        f"Recall {_interval(test['recall'])}, specificity {_interval(test['specificity'])}.",
        "",
        "## Known traps",
        "",
        *(f"- {_line(trap)}" for trap in card["known_traps"]),
        "",
        f"Licence of the data: {_line(card['licence'])} {_line(card['attribution'])}",
    ]
    return "\n".join(lines) + "\n"


def _points(rule: Mapping[str, Any]) -> list[str]:
    rows = [
        f"| {point['recall_target']:g} | {point['confidence']:g} | {point['threshold']:.4f} | {point['positives']} |"
        for point in rule["operating_points"]
    ]
    return ["| recall | confidence | refer from logit | certified on positives |", "|---|---|---|---|", *rows, ""]


def _line(words: str) -> str:
    return " ".join(words.split())


def _interval(value: Mapping[str, Any] | None) -> str:
    if not value or value["value"] is None:
        return "not shown"
    low, high = value["low"], value["high"]
    limits = f" ({low:.3f} to {high:.3f})" if low is not None and high is not None else " (no interval)"
    return f"{value['value']:.3f}{limits}"
