"""What the model is for, which studies it saw, who decided about the truth, how it was made."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pandas as pd

from pipeline.reporting.diagrams import flow
from pipeline.reporting.document import (
    RESEARCH_USE,
    Block,
    Bullets,
    Figure,
    Figures,
    Heading,
    Paragraph,
    Section,
    Table,
)
from pipeline.reporting.evidence import Evidence
from pipeline.reporting.numbers import count, number, plain_percent, share
from pipeline.reporting.sections.exam import completeness
from pipeline.store.results.operating_point import Watching
from pipeline.store.wording import counted

SPLIT_NAMES = {
    "pretrain": "Pretraining only",
    "train": "Training",
    "tune": "Tuning",
    "calibration": "Calibration",
    "test": "Test",
}
SEXES = {"F": "female", "M": "male", "O": "other", "": "unknown"}


def intended_use(e: Evidence) -> Section:
    """Return what the card says the model is for, and what it is not for."""
    use, card = e.card["intended_use"], e.card
    rows = [
        ["Condition", use["condition"]],
        ["People", use["population"]],
        ["User", use["user"]],
        ["Place in the pathway", use["place"]],
        ["Status", RESEARCH_USE],
        ["Questions to", e.contact],
    ]
    blocks: list[Block] = [
        Table("intended_use", "Intended use, as stated in the dataset card", ["What", "Statement"], rows, True)
    ]
    if use["not_for"]:
        blocks += [Heading("Not for"), Bullets(use["not_for"])]
    if card["known_traps"]:
        blocks += [Heading("Known to be wrong or misleading in these data"), Bullets(card["known_traps"])]
    if e.point is not None:
        blocks += [Heading("When to stop"), Paragraph(_stop_rule(e.point.watching))]
    return Section("intended_use", "Intended use and limits", blocks)


def _stop_rule(w: Watching) -> str:
    """Say when to stop using the model, and beforehand how much it takes to notice that it got worse."""
    falls = _noticed(w.audited_positives_to_notice, "such patient")
    audits = w.audits_to_bound_missed["0.005"]
    said = [
        f"Stop and calibrate again when the evidence against a sensitivity of {plain_percent(w.recall)} reaches "
        f"{w.alarm_at:g} to 1 (a test martingale, which may be looked at after every patient; its false alarms, "
        f"ever: at most {plain_percent(w.false_alarm_ever)}).",
        "It counts misses among patients with the condition who were referred or audited: outcomes of referred people "
        "alone show no miss.",
        *([f"Half of such falls are noticed: {falls}."] if falls else []),
        f"Outcomes of {count(audits)} people not referred, drawn at random and none with the condition, bound the "
        "missed at 5 in 1,000 of them.",
    ]
    if band := w.referral_band:
        said.append(
            f"In the same way, when the share referred leaves {plain_percent(band.low)} to "
            f"{plain_percent(band.high)}, which assumes page one's prevalence. Half of such "
            f"changes are noticed: {_noticed(w.people_to_notice, 'person', 'people')}."
        )
    said.append("And before use at another site, on other equipment or in another population.")
    return " ".join(said)


def _noticed(after: Mapping[str, int | None], one: str, many: str = "") -> str:
    """Return after how many a change to each share is noticed: `to 90 % after 153 such patients, to 85 % after 42`."""
    said: list[str] = []
    for changed, n in after.items():
        whom = "" if said else f" {'of ' if n is None else ''}{one if n == 1 else many or f'{one}s'}"
        said.append(f"to {plain_percent(float(changed))} after {'thousands' if n is None else count(n)}{whom}")
    return ", ".join(said)


COPIES = {
    "same_image": "files with the same identifier as another file, set aside",
    "same_pixels": "files with the same picture of the same patient, set aside",
    "uid_conflicts": "files with one identifier and different pictures, all set aside",
    "images_shared_between_patients": "images whose picture another patient has, too",
    "near_duplicates": "pairs of images that show nearly the same",
    "near_duplicates_across_patients": "of these, pairs of images of different patients",
}


def studies(e: Evidence) -> Section:
    """Return the flow of studies, who is in which part, and what was set aside; in the appendix, who they are."""
    card = e.card
    source = [["Dataset", card["title"]], ["Source", card["source"]], ["Licence", card["licence"]],
              ["Attribution", card["attribution"]], ["Made up in these data", card["synthetic"]]]  # fmt: skip
    blocks: list[Block] = [Figures([_flow(e)]), *_splits(e), *completeness(e), Paragraph(_copies(e))]
    appendix: list[Block] = [
        Table("dataset", "The data, as stated in the dataset card", ["What", "Statement"], source, True),
        _make_up(e),
    ]
    reasons = e.ingest["reasons"]
    set_aside = [
        [_words(reason), count(n), reasons.get(reason, "")]
        for reason, n in sorted(e.ingest["quarantined"].items())
        if n
    ]
    if set_aside:
        blocks.append(Table("quarantine", "Files set aside, by reason", ["Reason", "Files", "Meaning"], set_aside))
    meanings = e.ingest["flag_meanings"]
    flags = [[_words(name), count(n), meanings.get(name, "")] for name, n in sorted(e.ingest["flags"].items()) if n]
    if flags:
        columns = ["Remark", "Images", "Meaning"]
        appendix.append(Table("quality_flags", "Images accepted with a remark", columns, flags))
    found, near = e.ingest["duplicates"], _near_looked_for(e)
    copies = [
        [words, count(found[name])]
        for name, words in COPIES.items()
        if found.get(name) and (near or not name.startswith("near_"))
    ]
    if copies:
        appendix.append(Table("duplicates", "Images that came more than once", ["What", "Number"], copies))
    return Section("studies", "Studies", blocks, appendix)


def _words(code: str) -> str:
    return code.replace("_", " ")


def _near_looked_for(e: Evidence) -> bool:
    # An artifact that was kept may be older than this setting.
    return e.records["ingest"]["settings"].get("near_duplicates", True)


def _copies(e: Evidence) -> str:
    """Say what was made of patients who share an image, and whether images that are nearly the same were looked for."""
    alike = ", exactly or nearly," if _near_looked_for(e) else ""
    if e.records["split"]["settings"].get("shared_images") == "stop":
        said = f"No two patients share an image{alike.rstrip(',')}: the run would have stopped."
    else:
        said = f"Patients who share an image{alike} are in the same part."
    return said if _near_looked_for(e) else f"{said} Images that are nearly the same were not looked for."


def reference_standard(e: Evidence) -> Section:
    """Return who decided whether the condition is there."""
    label = e.card["label"]
    rows = [
        ["Condition", label["name"]],
        ["A patient is positive when", label["definition"]],
        ["Who decided, and how", label["reference_standard"]],
        ["Values that mean positive", ", ".join(label["positive"])],
        ["Values that mean negative", ", ".join(label["negative"])],
    ]
    return Section(
        "reference_standard",
        "Reference standard",
        [
            Table(
                "reference_standard",
                "What counts as the truth, as stated in the dataset card",
                ["What", "Statement"],
                rows,
                True,
            )
        ],
    )


def _flow(e: Evidence) -> Figure:
    quarantined = {reason.replace("_", " "): n for reason, n in sorted(e.ingest["quarantined"].items()) if n}
    accepted = [f"accepted {counted(e.ingest['accepted'], 'image')}", f"of {counted(e.ingest['patients'], 'patient')}"]
    if "masks" in e.ingest:
        masks = e.ingest["masks"]
        assumed = f", {count(masks['taken_for_empty'])} assumed empty" if "taken_for_empty" in masks else ""
        accepted.insert(1, f"with {counted(masks['accepted'], 'mask')}{assumed}")
    splits = {name: e.split["splits"][name] for name in SPLIT_NAMES if _filled(e, name)}
    boxes = [
        [
            SPLIT_NAMES[name].lower(),
            counted(s["patients"], "patient"),
            f"{count(s['positive_patients'])} with condition",
            counted(s["images"], "image"),
        ]
        for name, s in splits.items()
    ]
    aside = sum(quarantined.values())
    return Figure(
        "flow",
        f"{counted(e.ingest['received'], 'file')} received, {count(aside)} set aside, {' '.join(accepted)}; "
        + "; ".join(f"{SPLIT_NAMES[n].lower()} {counted(s['patients'], 'patient')}" for n, s in splits.items())
        + ".",
        "Flow of files and patients. No patient is in two parts.",
        16,
        flow(e.ingest["received"], accepted, quarantined, boxes),
    )


def _filled(e: Evidence, name: str) -> bool:
    return name in e.split["splits"] and e.split["splits"][name]["patients"] > 0


def _splits(e: Evidence) -> list[Block]:
    purposes = {
        "pretrain": "pretraining, without labels",
        "train": "pretraining and training",
        "tune": "choices during training",
        "calibration": "probabilities and threshold",
        "test": "the results of this report",
    }
    rows = [
        [SPLIT_NAMES[name], purposes[name], count(s["patients"]), share(s["positive_patients"], s["patients"]),
         count(s["images"]), share(s["positive_images"], s["images"])]
        for name, s in e.split["splits"].items() if _filled(e, name)
    ]  # fmt: skip
    checks = (
        ("patients_shared_between_splits", "patients in two parts"),
        ("labels_without_images", "labels without images"),
        ("images_without_labels", "images without labels"),
        ("conflicting_patients", "patients whose images differ in label"),
        ("linked_patients", "patients kept together because their images are copies"),
    )
    said = "; ".join(f"{words}: {count(e.split[name])}" for name, words in checks)
    shares = ", ".join(f"{SPLIT_NAMES[name].lower()} {plain_percent(f)}" for name, f in e.split["fractions"].items())
    how = (
        f"The unit is the patient, with all who share an image. Labelled patients were assigned by a hash with seed "
        f"{e.split['seed']}, whatever their label ({shares}), within what the dataset's own split allows, where it has "
        "one. A file that fails a check is set aside and never scored, and so would a new one be. Nothing missing was "
        "filled in."
    )
    columns = ["Part", "Used for", "Patients", "With the condition", "Images", "Positive images"]
    return [Table("splits", "Patients and images in each part", columns, rows), Paragraph(f"{how} Checked: {said}.")]


def _make_up(e: Evidence) -> Table:
    """Count patients by sex and age, images by site, view and manufacturer; a patient's first image speaks for them."""
    merged = e.assignment[["image_id", "split"]].merge(e.images, on="image_id", validate="one_to_one")
    merged = merged.sort_values("image_id")
    names = [name for name in SPLIT_NAMES if (merged["split"] == name).any()]
    by_split = {name: merged[merged["split"] == name] for name in names}
    patients = {name: frame.drop_duplicates("patient_id") for name, frame in by_split.items()}

    def row(title: str, frames: dict[str, pd.DataFrame], cell: Callable[[pd.DataFrame], str]) -> list[str]:
        return [title, *(cell(frame) for frame in frames.values())]

    rows = [row("Age in years, median (middle half)", patients, _ages)]
    rows.append(row("Age unknown, patients", patients, lambda f: count(f["age_years"].isna().sum())))
    for value in sorted(set(merged["sex"]), key=list(SEXES).index):
        rows.append(
            row(f"Sex {SEXES[value]}, patients", patients, lambda f, v=value: share(int((f["sex"] == v).sum()), len(f)))
        )
    for column, words in (("site", "Site"), ("view", "View"), ("manufacturer", "Manufacturer")):
        for value in merged[column].value_counts(sort=True).sort_index().index:
            title = f"{words} {str(value)[:12] or 'unknown'}, images"
            rows.append(row(title, by_split, lambda f, c=column, v=value: share(int((f[c] == v).sum()), len(f))))
    columns = ["", *(SPLIT_NAMES[name] for name in names)]
    return Table("make_up", "Who and what is in each part (counts)", columns, rows)


def _ages(frame: pd.DataFrame) -> str:
    low, middle, high = frame["age_years"].quantile([0.25, 0.5, 0.75])
    return "unknown" if pd.isna(middle) else f"{number(middle, 0)} ({number(low, 0)}–{number(high, 0)})"
