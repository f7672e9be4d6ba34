"""Three reporting guidelines as data: what each item asks for, and which section of the report answers it.

Numbers follow the publications; what an item asks for is said in our own words. Whether it is answered is found out
from the card and the results of a run: see `answer`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import pandas as pd

from pipeline.reporting.evidence import Evidence, known_groups

NOT_STATED = {"", "not stated"}


@dataclass(frozen=True)
class Item:
    """An item of a guideline.

    `section` names the section that answers it, once all of `needs` is there: names of FACTS, or places in the card
    (`study.ethics`). An item without a section is one that the pipeline cannot answer; `why` says why.
    """

    number: str
    asks: str
    section: str = ""
    needs: tuple[str, ...] = ()
    why: str = "not known to the pipeline"


@dataclass(frozen=True)
class Guideline:
    """A guideline, its publication, and its items in their order."""

    name: str
    title: str
    publication: str
    items: tuple[Item, ...]


@dataclass(frozen=True)
class Answer:
    """Where an item is answered: the name of a section; or, when `section` is empty, why it is not."""

    section: str
    missing: str = ""


FACTS: Mapping[str, tuple[Callable[[Evidence], bool], str]] = {
    "operating point": (lambda e: e.point is not None, "there is no usable operating point"),
    "demographics": (
        lambda e: bool((e.images["sex"] != "").any() or e.images["age_years"].notna().any()),
        "the studies state neither sex nor age",
    ),
    "manufacturer": (lambda e: bool((e.images["manufacturer"] != "").any()), "the studies name no manufacturer"),
    "subgroups": (lambda e: not known_groups(e.subgroups).empty, "the studies carry nothing to group patients by"),
    "first reading": (lambda e: e.read_first, "no ledger shows that it was settled before test patients were read"),
    "gaps": (
        lambda e: e.point is not None and bool(e.subgroups.get("recall_gap", pd.Series(dtype=float)).notna().any()),
        "no two groups can be compared",
    ),
    "between sites": (
        lambda e: any(
            group[name] is not None for group in e.between_sites for name in ("recall", "specificity", "auc")
        ),
        "fewer than two sites have enough patients",
    ),
    "external set": (
        lambda e: any(its.judged for its in e.metrics.external.values()),
        "there is no external test set with patients of its own",
    ),
    "outlines": (
        lambda e: any(x.outlined is not None for x in [*e.misses, *e.false_alarms]),
        "no example has an outline",
    ),
}


def answer(item: Item, e: Evidence) -> Answer:
    """Return which section of this run's report answers an item, or what is missing."""
    if not item.section:
        return Answer("", item.why)
    lacking = [need for need in item.needs if not _there(need, e)]
    if not lacking:
        return Answer(item.section)
    facts = [FACTS[need][1] for need in lacking if need in FACTS]
    stated = [need for need in lacking if need not in FACTS]
    return Answer("", "; ".join([*facts, *([f"the card does not state {', '.join(stated)}"] if stated else [])]))


def _there(need: str, e: Evidence) -> bool:
    if need in FACTS:
        return FACTS[need][0](e)
    value = e.card
    for name in need.split("."):
        value = value[name]
    return bool(value) and (not isinstance(value, str) or stated(value))


def stated(text: str) -> bool:
    """Return whether a statement of the card says something."""
    return text.strip().lower() not in NOT_STATED


STARD_AI = Guideline(
    "STARD-AI",
    "accuracy of a test that uses artificial intelligence",
    "Sounderajah et al., Nature Medicine 2025;31:3283–3289, doi:10.1038/s41591-025-03953-8",
    (
        Item("1", "Recognisable as a study of an AI's accuracy, with a measure of it", "summary"),
        Item("2", "Structured summary", "summary", ("study.design", "operating point")),
        Item("3", "Background, intended use, place in the workflow", "intended_use", ("intended_use.place",)),
        Item("4", "Objectives and hypotheses", "summary", ("first reading",)),
        Item("5", "Prospective or retrospective", "statements", ("study.design",)),
        Item("6", "Ethics approval, or why none was needed", "statements", ("study.ethics",)),
        Item("7", "Who and which data were included and excluded, in order", "statements", ("study.eligibility",)),
        Item("8", "On what grounds people were found", "statements", ("study.sampling",)),
        Item("9", "Setting, places and dates", "statements", ("study.setting", "study.dates")),
        Item("10", "Consecutive, random or convenience series", "statements", ("study.sampling",)),
        Item("11", "Source of the data, and why they were collected", "studies", ("source", "study.design")),
        Item("12", "Who annotated, with what experience, and how", "statements",
             ("study.annotators", "study.annotation")),
        Item("13", "Devices that took the images; software behind the test", "studies", ("manufacturer",)),
        Item("14", "Acquisition and preprocessing", "statements", ("study.acquisition",)),
        Item("15a", "The test, in detail that allows repetition", "model"),
        Item("15b", "How it was developed, on how many", "model"),
        Item("15c", "Its thresholds, why, and whether fixed beforehand", "operating_point", ("operating point",)),
        Item("15d", "Who is meant to use it, with what expertise", "intended_use", ("intended_use.user",)),
        Item("16a", "The reference standard, in detail", "reference_standard", ("label.reference_standard",)),
        Item("16b", "Why this reference standard", "statements", ("study.reference_rationale",)),
        Item("16c", "What counts as positive in the reference standard", "reference_standard", ("label.definition",)),
        Item("17a", "What was known to those who applied the test", "model"),
        Item("17b", "What was known to those who set the reference", "statements", ("study.blinding",)),
        Item("18", "Methods of estimating and comparing accuracy", "discrimination"),
        Item("19", "What became of indeterminate results", "statements", ("study.indeterminate",)),
        Item("20", "What became of missing data", "studies"),
        Item("21", "Analyses of variability, planned or not", "subgroups", ("subgroups",)),
        Item("22", "Planned sample size and its reason", "statements", ("study.sample_size",)),
        Item("23", "Analysis of errors, bias and fairness", "subgroups", ("gaps",)),
        Item("24", "Flow of participants, as a diagram", "studies"),
        Item("25", "Characteristics of each part of the data", "studies", ("demographics",)),
        Item("26a", "Severity in those with the condition", "statements", ("study.severity",)),
        Item("26b", "What those without it had instead", "statements", ("study.alternatives",)),
        Item("27", "Time and treatment between test and reference", "statements", ("study.interval",)),
        Item("28", "Whether the data resemble the people it is meant for", "statements",
             ("study.representativeness",)),
        Item("29", "How an external data set differs", "external", ("external set",)),
        Item("30", "Test result against reference, cross-tabulated", "operating_point", ("operating point",)),
        Item("31", "Accuracy with its precision", "discrimination"),
        Item("32", "Harm from test or reference standard", "statements", ("study.adverse_events",)),
        Item("33", "Limitations", "intended_use", ("known_traps",)),
        Item("34", "What it means for practice", "intended_use", ("intended_use.place",)),
        Item("35", "Ethics of its use, fairness", "statements", ("study.inequalities",)),
        Item("36", "Registration", "statements", ("study.registration",)),
        Item("37", "Where the protocol can be read", "statements", ("study.protocol",)),
        Item("38", "Funding and the funders' part", "statements", ("study.funding",)),
        Item("39", "Commercial interests", "statements", ("study.conflicts",)),
        Item("40a", "Availability of data and code", "statements",
             ("study.data_availability", "study.code_availability")),
        Item("40b", "Whether outputs are kept and can be audited", "provenance"),
    ),
)  # fmt: skip

CLAIM = Guideline(
    "CLAIM, 2024 update",
    "artificial intelligence in medical imaging",
    "Tejani et al., Radiology: Artificial Intelligence 2024;6(4):e240300, doi:10.1148/ryai.240300",
    (
        Item("1", "Recognisable as AI, and of which kind", "model"),
        Item("2", "Structured summary", "summary", ("study.design", "operating point")),
        Item("3", "Background and clinical role", "intended_use", ("intended_use.place",)),
        Item("4", "Aims and hypotheses", "summary", ("first reading",)),
        Item("5", "Prospective or retrospective", "statements", ("study.design",)),
        Item("6", "Goal of the study", "summary"),
        Item("7", "Sources of the data", "studies", ("source",)),
        Item("8", "Inclusion and exclusion", "statements", ("study.eligibility",)),
        Item("9", "Preprocessing", "model"),
        Item("10", "Choice of parts of the data", "studies"),
        Item("11", "De-identification", "statements"),
        Item("12", "Missing data", "studies"),
        Item("13", "Acquisition protocol", "statements", ("study.acquisition",)),
        Item("14", "How the reference standard was obtained", "reference_standard", ("label.reference_standard",)),
        Item("15", "Why this reference standard", "statements", ("study.reference_rationale",)),
        Item("16", "Who set it, with what qualification", "statements", ("study.annotators",)),
        Item("17", "How the test set was annotated", "statements", ("study.annotation",)),
        Item("18", "Agreement between annotators, and disputes", "statements", ("study.agreement",)),
        Item("19", "How data were assigned to parts", "studies"),
        Item("20", "At which level the parts are disjoint", "studies"),
        Item("21", "Planned size of the test set", "statements", ("study.sample_size",)),
        Item("22", "The model in detail", "model"),
        Item("23", "Software with versions", "provenance"),
        Item("24", "Initial weights", "model"),
        Item("25", "Training in detail, with every setting", "provenance"),
        Item("26", "How the final model was chosen", "model", ("first reading",)),
        Item("27", "Ensembles", "model"),
        Item("28", "Measures of performance", "discrimination"),
        Item("29", "Uncertainty and tests", "discrimination"),
        Item("30", "Robustness", "external", ("external set",)),
        Item("31", "Methods of explaining", "examples", ("outlines",)),
        Item("32", "Testing on internal data", "discrimination"),
        Item("33", "Testing on external data", "external", ("external set",)),
        Item("34", "Registration as a trial", "statements", ("study.registration",)),
        Item("35", "Numbers included and excluded, as a diagram", "studies"),
        Item("36", "Characteristics of each part of the data", "studies", ("demographics",)),
        Item("37", "Performance by part and subgroup", "subgroups", ("subgroups",)),
        Item("38", "Accuracy with its precision", "discrimination"),
        Item("39", "Analysis of failures", "examples", ("operating point",)),
        Item("40", "Limitations", "intended_use", ("known_traps",)),
        Item("41", "What it means for practice", "intended_use", ("intended_use.place",)),
        Item("42", "Where the protocol can be read", "statements", ("study.protocol",)),
        Item("43", "Availability of software, model and data", "statements",
             ("study.data_availability", "study.code_availability")),
        Item("44", "Funding and the funders' part", "statements", ("study.funding",)),
    ),
)  # fmt: skip

TRIPOD_AI = Guideline(
    "TRIPOD+AI",
    "development and evaluation of a prediction model",
    "Collins et al., BMJ 2024;385:e078378, doi:10.1136/bmj-2023-078378",
    (
        Item("1", "Recognisable as a prediction model, for whom and what", "summary"),
        Item("2", "Abstract", "summary", ("study.design", "operating point")),
        Item("3a", "Healthcare context, reason, existing models", "statements", ("study.rationale",)),
        Item("3b", "For whom, for what and for which users it is meant", "intended_use",
             ("intended_use.population", "intended_use.place", "intended_use.user")),
        Item("3c", "Known inequalities between groups", "statements", ("study.inequalities",)),
        Item("4", "Objectives", "summary"),
        Item("5a", "Sources of the data, how representative", "statements", ("source", "study.representativeness")),
        Item("5b", "Dates", "statements", ("study.dates",)),
        Item("6a", "Setting, number and place of centres", "statements", ("study.setting",)),
        Item("6b", "Eligibility", "statements", ("study.eligibility",)),
        Item("6c", "Treatments received", "statements", ("study.treatments",)),
        Item("7", "Preparation and checks of the data", "studies"),
        Item("8a", "The outcome, how and when assessed", "reference_standard",
             ("label.definition", "label.reference_standard")),
        Item("8b", "Who assessed the outcome", "statements", ("study.annotators",)),
        Item("8c", "Blinding of the outcome's assessment", "statements", ("study.blinding",)),
        Item("9a", "Choice of predictors", "model"),
        Item("9b", "Definition of predictors", "model"),
        Item("9c", "Who assessed predictors, where that takes judgement", "model"),
        Item("10", "Study size and its reason", "statements", ("study.sample_size",)),
        Item("11", "Missing data", "studies"),
        Item("12a", "How the data were used and divided", "studies"),
        Item("12b", "How predictors were handled", "model"),
        Item("12c", "Type of model, building steps, tuning", "model"),
        Item("12d", "Heterogeneity between clusters: how handled", "shift", ("between sites",)),
        Item("12e", "Measures and plots of performance", "discrimination"),
        Item("12f", "Recalibration and other updating", "calibration"),
        Item("12g", "How predictions were calculated", "model"),
        Item("13", "Handling of class imbalance", "model"),
        Item("14", "Approach to fairness", "statements", ("study.inequalities",)),
        Item("15", "Output, and how thresholds were found", "operating_point", ("operating point",)),
        Item("16", "Differences between development and evaluation data", "shift"),
        Item("17", "Ethics approval and consent", "statements", ("study.ethics",)),
        Item("18a", "Funding", "statements", ("study.funding",)),
        Item("18b", "Conflicts of interest", "statements", ("study.conflicts",)),
        Item("18c", "Protocol", "statements", ("study.protocol",)),
        Item("18d", "Registration", "statements", ("study.registration",)),
        Item("18e", "Availability of the data", "statements", ("study.data_availability",)),
        Item("18f", "Availability of the code", "statements", ("study.code_availability",)),
        Item("19", "Part of patients and the public", "statements", ("study.public_involvement",)),
        Item("20a", "Flow of participants", "studies"),
        Item("20b", "Characteristics of participants", "studies", ("demographics",)),
        Item("20c", "Evaluation data beside development data", "studies"),
        Item("21", "Participants and outcomes in each analysis", "studies"),
        Item("22", "The full model, for use by others", "statements", ("study.code_availability",)),
        Item("23a", "Performance with intervals, by subgroup too", "subgroups", ("subgroups",)),
        Item("23b", "Heterogeneity between clusters: results", "shift", ("between sites",)),
        Item("24", "Results of updating", "calibration"),
        Item("25", "Interpretation, fairness included", "statements", ("study.inequalities",)),
        Item("26", "Limitations", "intended_use", ("known_traps",)),
        Item("27a", "What to do with poor or missing input", "studies"),
        Item("27b", "Whether users handle input, and expertise needed", "intended_use", ("intended_use.user",)),
        Item("27c", "Next steps of research", why="a matter for the authors"),
    ),
)  # fmt: skip

GUIDELINES = (STARD_AI, CLAIM, TRIPOD_AI)
