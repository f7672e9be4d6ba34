"""What a card says of a model, in the order of Mitchell et al. (FAT* 2019): once for both of them.

MODEL_CARD.md lies in the packaged model, is part of its hash, and is written before there is a report; model_card.md
lies beside the report. Sentences about label, network, training, intended use, test results, traps and data are made
here for both, so that the two cannot disagree.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.inference.plain_text import RESEARCH_USE, markdown, shortened
from pipeline.store.wording import counted

LONGEST = 300  # characters of what somebody wrote
Json = Mapping[str, Any]


@dataclass(frozen=True)
class Facts:
    """What is told of a model. `label` and `use` are those of the dataset card, `data` has its source, licence and
    attribution; `network` has arm, description, seeds and parameters_per_network, `trained_on` counts of patients,
    positives and images, and of `unlabelled` images where there were some, `test` what the locked test patients
    showed, each rate with its interval or None.
    """

    label: Json
    network: Json
    trained_on: Json
    use: Json
    not_for: Sequence[str]
    test: Json
    traps: Sequence[str]
    data: Json


def facts(content: Json) -> Facts:
    """Return what model.json tells of a model."""
    return Facts(
        label=content["labels"][0],
        network=content["network"],
        trained_on=content["trained_on"],
        use=content["card"]["intended_use"],
        not_for=content["not_for"],
        test=content["test"],
        traps=content["card"]["known_traps"],
        data=content["card"],
    )


def text(content: Json) -> str:
    """Return MODEL_CARD.md of a packaged model from its model.json; what is not known is said to be unknown."""
    told, rule = facts(content), content["rule"]
    lines = [
        f"# {markdown(content['title'])}",
        "",
        f"{RESEARCH_USE}.",
        "",
        *about(told),
        "",
        "## Intended use",
        "",
        *use(told),
        "",
        "## Operating point",
        "",
        *(_points(rule) if rule["usable"] else ["None: the model gives scores, never decisions.", ""]),
        *(f"- {markdown(sentence)}" for sentence in content["scope"]),
        "",
        "## On the locked test set",
        "",
        *tested(told, another_threshold(told.test, rule)),
        "",
        "## Known traps",
        "",
        *traps(told),
        "",
        "## Data",
        "",
        *data(told),
    ]
    return "\n".join(lines) + "\n"


def about(told: Facts) -> list[str]:
    """Return what the model judges, who decided about the truth, what it is, and what it learned from."""
    net, trained = told.network, told.trained_on
    return [
        *listed("What it judges", f"{told.label['name']}: {told.label['definition']}"),
        *listed("Reference standard", told.label["reference_standard"]),
        *listed(
            "Model",
            f"{net['description']}; {counted(len(net['seeds']), 'network')} of "
            f"{counted(net['parameters_per_network'], 'parameter')}, arm {net['arm']}",
        ),
        *listed(
            "Trained on",
            f"{counted(trained['patients'], 'patient')}, {trained['positives']:,} with the condition, "
            f"{counted(trained['images'], 'image')}",
        ),
        *_unlabelled(trained.get("unlabelled")),
    ]


def _unlabelled(counts: Json | None) -> list[str]:
    """Return how many further images were pretrained on, and how many were left out; nothing where there were none."""
    if not counts:
        return []
    left_out = sum(counts["left_out"].values())
    return listed(
        "Pretrained on, besides",
        f"{counted(counts['images'], 'image')} of {counted(counts['patients'], 'patient')} without labels "
        f"(data.unlabelled); {left_out:,} others were left out, since they are, or show, patients of tuning, "
        "calibration or test, or images that the run has already",
    )


def use(told: Facts) -> list[str]:
    """Return for whom the model is meant, and for what it is not."""
    return [
        *listed("People", told.use["population"]),
        *listed("User, place", f"{told.use['user']}; {told.use['place']}"),
        *listed("Not for", "; ".join(told.not_for) or "not stated"),
    ]


def tested(told: Facts, another: bool) -> list[str]:
    """Return what the locked test patients showed; `another`: at a threshold other than the one to use."""
    test = told.test
    shown = [
        *listed(
            "Test patients",
            f"{counted(test['patients'], 'patient')}, {test['positives']:,} with the condition",
        ),
        *listed("AUC", _interval(test["auc"], 3, 1)),
    ]
    if test["recall"] is None:
        return [*shown, *listed("Recall, specificity", "not shown: there is no usable operating point")]
    at = " at the threshold that was tested, which is not the one to use" if another else ""
    rates = (f"{name} {_interval(test[name], 1, 100)}" for name in ("recall", "specificity"))
    return [*shown, *listed("Recall, specificity", f"{'; '.join(rates)}{at}")]


def another_threshold(test: Json, rule: Json) -> bool:
    """Return whether the threshold that test patients judged is another than the one that the model has."""
    points = rule["operating_points"]
    return bool(points) and test["threshold_hex"] != points[0]["threshold_hex"]


def traps(told: Facts, most: int | None = None) -> list[str]:
    """Return the known traps, or the first of them."""
    return [f"- {markdown(shortened(trap, LONGEST))}" for trap in told.traps[:most]] or ["- None is stated."]


def data(told: Facts) -> list[str]:
    """Return where the data come from."""
    return listed("Data", f"{told.data['source']}; licence {told.data['licence']}; {told.data['attribution']}")


def listed(what: str, words: str) -> list[str]:
    """Return an item of a list with its head; words are text in it, on one line, cut where they are long."""
    return [f"- **{what}:** {markdown(shortened(words, LONGEST))}"]


def _points(rule: Json) -> list[str]:
    rows = [
        f"| {point['recall_target']:g} | {point['confidence']:g} | {point['threshold']:.4f} | "
        f"{counted(point['positives'], 'patient')} with it among {point['source']} |"
        for point in rule["operating_points"]
    ]
    return ["| recall | confidence | refer from logit | certified on |", "|---|---|---|---|", *rows, ""]


def _interval(value: Json, digits: int, scale: int) -> str:
    """Return a value with its interval and the number behind it; in per cents with `scale` 100."""
    unit = " %" if scale == 100 else ""
    if value["value"] is None or value["value"] != value["value"]:
        return "not estimable: patients of one kind are missing"

    def shown(x: float) -> str:
        return f"{scale * x:.{digits}f}"

    low, high = value["low"], value["high"]
    known = low is not None and low == low
    limits = f"{100 * value['level']:g} % interval {shown(low)}–{shown(high)}{unit}" if known else "no interval"
    return f"{shown(value['value'])}{unit} ({limits}, n = {value['n']:,})"
