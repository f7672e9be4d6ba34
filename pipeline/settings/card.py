"""The dataset card: what a dataset is, what its label means, and what no file tells."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from pipeline.settings.common import Axis, Settings

JOINS = ("path", "sop_instance_uid", "series_instance_uid", "study_instance_uid", "patient_id")
OF_AN_IMAGE = ("path", "sop_instance_uid", "series_instance_uid")
SplitName = Literal["pretrain", "train", "tune", "calibration", "test"]
NOT_STATED = "not stated"
# Indices of structures are bytes: 0 is background, 255 means not annotated.
LARGEST_STRUCTURE = 254


class CardLabel(Settings):
    """What the label means and which values of the label column stand for it."""

    name: str = Field(description="the condition, as a reader would say it")
    definition: str = Field(description="what makes a patient positive")
    reference_standard: str = Field(description="who decided, how, blinded to what")
    positive: list[str] = Field(min_length=1, description="values of the label column that mean positive")
    negative: list[str] = Field(min_length=1, description="values of the label column that mean negative")
    unused: list[str] = Field(
        default_factory=list, description="values that are no answer, like uncertain: as if the cell were empty"
    )

    @model_validator(mode="after")
    def _disjoint(self) -> CardLabel:
        twice = [value for value, count in Counter([*self.positive, *self.negative, *self.unused]).items() if count > 1]
        if twice:
            raise ValueError(f"values listed more than once among positive, negative and unused: {', '.join(twice)}")
        return self


class MaskRule(Settings):
    """From the path of an image to that of its mask, both inside the studies."""

    image: str = Field(description=r"regular expression that fits the whole path of an image, e.g. images/(.+)\.png")
    mask: str = Field(description=r"path of its mask, with the groups of `image`, e.g. masks/\1_mask.png")

    @model_validator(mode="after")
    def _expands(self) -> MaskRule:
        try:
            empty = re.compile(f"{self.image}|", re.DOTALL).match("")  # for its groups alone
            if empty is not None:
                empty.expand(self.mask)
        except (re.error, IndexError) as error:
            raise ValueError(f"image and mask are no expression and its replacement: {error}") from None
        return self


class CardMask(Settings):
    """Where the masks of the images are, and what their values mean."""

    column: str | None = Field(None, description="column of the label table with the path of the mask in the studies")
    rule: MaskRule | None = Field(None, description="or how paths of images lead to those of masks")
    structures: dict[int | Literal["nonzero"], str] = Field(
        {"nonzero": "lesion"},
        description="values of the mask, of a DICOM SEG numbers of segments, and what they are; 0 is background. "
        "nonzero, alone: all values but 0 are the one structure, e.g. of masks of 0 and 255",
    )
    others: Literal["refuse", "background"] = Field(
        "refuse", description="values that `structures` does not name: the mask is refused, or they count as background"
    )
    missing: Literal["not_annotated", "empty"] = Field(
        "not_annotated",
        description="what an image without a mask says; empty: one with a negative label shows none of the structures, "
        "as where masks were drawn of lesions alone",
    )
    LATER: ClassVar[frozenset[str]] = frozenset({"missing"})

    @model_validator(mode="after")
    def _checked(self) -> CardMask:
        if (self.column is None) == (self.rule is None):
            raise ValueError("name either `column` or `rule`: where masks are found")
        keys = list(self.structures)
        if not keys or ("nonzero" in keys and len(keys) > 1) or len(keys) > LARGEST_STRUCTURE:
            raise ValueError(f"structures: between 1 and {LARGEST_STRUCTURE} values, or nonzero alone")
        if any(key != "nonzero" and key < 1 for key in keys):
            raise ValueError("structures: values are whole numbers from 1 on; 0 is background")
        if len({*self.structures.values()}) < len(keys):
            raise ValueError("structures: names must be distinct")
        return self


class MainLabel(CardLabel):
    """The label that decides: what it means, and where a mask shows it."""

    mask: CardMask | None = Field(
        None, description="a mask of lesion or organ beside the label; null = images without masks"
    )
    LATER: ClassVar[frozenset[str]] = frozenset({"mask"})


class FurtherLabel(CardLabel):
    """Another question about the same images, answered beside the main one; other values are no answer to it."""

    id: str = Field(pattern=r"^[a-z0-9_]+$", description="what tables and files call it")
    column: str | None = Field(None, description="its column of the label table; null = that of the main label")


class CardColumns(Settings):
    """Columns of the label table. The finest of the first five joins a row to images."""

    path: str | None = Field(None, description="path of the image inside its source")
    patient_id: str | None = Field(None, description="patient identifier; joins when no other column does")
    study_instance_uid: str | None = Field(None, description="Study Instance UID, as in DICOM headers")
    series_instance_uid: str | None = Field(None, description="Series Instance UID, as in DICOM headers")
    sop_instance_uid: str | None = Field(None, description="SOP Instance UID, as in DICOM headers")
    label: str = Field("label", description="the values that `label` explains")
    split: str | None = Field(None, description="split that the dataset itself names; `splits` says what is meant")
    view: str | None = Field(
        None, description="view position of the image, as DICOM has it, e.g. CC; fills the header's"
    )
    laterality: str | None = Field(None, description="side of the image: L, R, left, right, OD, OS; fills the header's")
    exam_from: Literal["table", "header"] | None = Field(
        None,
        description="who is right where view or side differ between table and header; null = such images are refused",
    )
    patient_from: Literal["table", "header"] | None = Field(
        None, description="who is right where the table's patients and the headers' differ; null = stop when they do"
    )
    several_rows: Literal["any_positive"] | None = Field(
        None,
        description="rows of one patient, study or image with different labels: positive when any is; null = refused",
    )
    path_without: str = Field("", description="folders in front of the table's paths that the archive has not")
    path_within: str = Field("", description="folders of the archive in which the table's paths begin")
    path_ignore: list[Literal["folders", "suffix", "case", "escapes"]] = Field(
        default_factory=list, description="what is not compared of paths; escapes: the table writes %20 for a blank"
    )
    id_ignore: list[Literal["leading_zeros", "decimals", "case", "punctuation"]] = Field(
        default_factory=list, description="what is not compared of patient identifiers, when they join"
    )

    LATER: ClassVar[frozenset[str]] = frozenset({"view", "laterality", "exam_from"})

    @property
    def path_rule(self) -> dict[str, Any]:
        """How paths of the label table lead to files."""
        return {"without": self.path_without, "within": self.path_within, "ignore": tuple(self.path_ignore)}

    @property
    def join(self) -> str:
        """The field that joins labels to images: the finest one named."""
        for field in JOINS:
            if getattr(self, field) is not None:
                return field
        raise ValueError("no join column")  # unreachable: validated below

    @model_validator(mode="after")
    def _joins(self) -> CardColumns:
        if not any(getattr(self, field) for field in JOINS):
            raise ValueError(f"name at least one of {', '.join(JOINS)}")
        if (self.view or self.laterality) and self.join not in OF_AN_IMAGE:
            raise ValueError(
                "view and laterality need a row per image: name path, sop_instance_uid or series_instance_uid"
            )
        if self.exam_from and not (self.view or self.laterality):
            raise ValueError("exam_from needs a column view or laterality")
        return self


class CardChannel(Settings):
    """A channel of the images, and what tells it, in one of four ways; all channels of a card in the same way.

    With `description`, `suffix` or `column`, a series or a file of its own, resampled to the grid of the first channel;
    with `axis`, a part of one four-dimensional NIfTI file.
    """

    name: str = Field(pattern=r"^[a-z0-9_]+$", description="what tables, reports and messages call it")
    description: list[str] = Field(
        default_factory=list,
        description="code words of the Series Description, compared as whole words whatever their case; all words of "
        "one entry must be there: [FLAIR, T1 POST]",
    )
    without: list[str] = Field(
        default_factory=list, description="words of the Series Description that speak against it, likewise"
    )
    suffix: str | None = Field(None, min_length=1, description="end of the file's name, e.g. _t1.nii.gz")
    axis: int | None = Field(None, ge=0, description="place along the last axis of a four-dimensional NIfTI, from 0")
    column: str | None = Field(
        None, min_length=1, description="column of the label table with the path of the channel's file, a row per study"
    )
    LATER: ClassVar[frozenset[str]] = frozenset({"column"})

    @model_validator(mode="after")
    def _told_in_one_way(self) -> CardChannel:
        if len(self.ways) != 1:
            raise ValueError("name one of description, suffix, axis and column")
        if self.without and not self.description:
            raise ValueError("without goes with description")
        if any(not any(letter.isalnum() for letter in text) for text in (*self.description, *self.without)):
            raise ValueError("description and without: every entry needs a word")
        return self

    @property
    def ways(self) -> list[str]:
        """By which of the ways it is told."""
        others = [way for way in ("suffix", "axis", "column") if getattr(self, way) is not None]
        return (["description"] if self.description else []) + others


class CardExam(Settings):
    """What an examination of a patient should have: an image of every view and side; an empty list leaves it open."""

    views: list[str] = Field(default_factory=list, description="view positions, e.g. [CC, MLO]")
    sides: list[Literal["L", "R"]] = Field(default_factory=list, description="e.g. [L, R]")

    @model_validator(mode="after")
    def _something(self) -> CardExam:
        from pipeline.imaging.vocabulary import VIEWS

        if not self.views and not self.sides:
            raise ValueError("name views, sides or both")
        if unknown := sorted({*self.views} - VIEWS):
            raise ValueError(f"views: {', '.join(unknown)}: the views known are {', '.join(sorted(VIEWS))}")
        if len({*self.views}) < len(self.views) or len({*self.sides}) < len(self.sides):
            raise ValueError("values must be distinct")
        return self


class Expected(Settings):
    """What the dataset should consist of; an image that states something else is flagged. Empty = anything."""

    modalities: list[str] = Field(default_factory=list, description="e.g. DX, CR")
    views: list[str] = Field(default_factory=list, description="e.g. PA, AP")
    body_parts: list[str] = Field(default_factory=list, description="e.g. CHEST")


class IntendedUse(Settings):
    """What the report says a model from this dataset is for, and what it is not for."""

    condition: str = Field(description="what a model from this dataset looks for")
    population: str = Field(description="in whom")
    user: str = Field(description="who would act on its decision")
    place: str = Field(description="place in the pathway")
    not_for: list[str] = Field(default_factory=list, description="what it must not be used for")


class StudyStatements(Settings):
    """What no file tells about a study, and reporting guidelines ask for. The report lists what is not stated."""

    rationale: str = Field(NOT_STATED, description="Why a model for this is wanted, and which models there are")
    design: str = Field(NOT_STATED, description="Prospective or retrospective, and why the images were taken")
    setting: str = Field(NOT_STATED, description="Kind, number and place of the sites")
    dates: str = Field(NOT_STATED, description="When the images were taken")
    eligibility: str = Field(NOT_STATED, description="Which people and which images were included and excluded")
    sampling: str = Field(NOT_STATED, description="How people were found: a consecutive, random or convenience series")
    treatments: str = Field(NOT_STATED, description="Treatments received, and how they were dealt with")
    acquisition: str = Field(NOT_STATED, description="How the images were taken: equipment and protocol")
    annotators: str = Field(NOT_STATED, description="Who set the labels: number, training, experience")
    annotation: str = Field(NOT_STATED, description="How the labels were set: tools and procedure")
    agreement: str = Field(NOT_STATED, description="How far annotators agreed, and how disagreement was settled")
    blinding: str = Field(NOT_STATED, description="What annotators knew about the person and the model")
    reference_rationale: str = Field(NOT_STATED, description="Why this reference standard was chosen")
    interval: str = Field(NOT_STATED, description="Time and treatment between image and reference standard")
    indeterminate: str = Field(NOT_STATED, description="How unclear reference results were dealt with")
    severity: str = Field(NOT_STATED, description="How severe the condition was in those who have it")
    alternatives: str = Field(NOT_STATED, description="What those without the condition had instead")
    representativeness: str = Field(NOT_STATED, description="How like the people that the model is meant for they are")
    inequalities: str = Field(NOT_STATED, description="Known inequalities between groups, and what fairness asks for")
    sample_size: str = Field(NOT_STATED, description="How many people were planned for, and why")
    adverse_events: str = Field(NOT_STATED, description="Harm done by imaging or by the reference standard")
    ethics: str = Field(NOT_STATED, description="Ethics committee and consent, or why none was needed")
    registration: str = Field(NOT_STATED, description="Register and number")
    protocol: str = Field(NOT_STATED, description="Where the study protocol can be read")
    funding: str = Field(NOT_STATED, description="Who paid, and their part in the study")
    conflicts: str = Field(NOT_STATED, description="Commercial and other competing interests")
    public_involvement: str = Field(NOT_STATED, description="What part patients and the public had")
    data_availability: str = Field(NOT_STATED, description="Where the data can be had, and on what terms")
    code_availability: str = Field(NOT_STATED, description="Where code and model can be had, and on what terms")


class Card(Settings):
    """A dataset: what it is, where it comes from, what its label means, what is known to be wrong with it."""

    name: str = Field(pattern=r"^[a-z0-9_]+$", description="lower-case identifier")
    title: str = Field(description="what the report calls it")
    source: str = Field(description="where the data comes from")
    licence: str = Field(description="on what terms it may be used")
    attribution: str = Field(description="who is to be named")
    label: MainLabel
    further_labels: list[FurtherLabel] = Field(
        default_factory=list,
        description="learned, certified and reported beside the main label, which alone decides page one and the gate: "
        "findings with columns of their own, or classes of one column, each against the others",
    )
    columns: CardColumns
    channels: list[CardChannel] = Field(
        [],
        max_length=16,
        description="several series or files of a study as channels of one volume, on the grid of the first; empty = "
        "each is an image of its own",
    )
    exam: CardExam | None = Field(
        None, description="views and sides that each patient should have: what is missing is counted, none is refused"
    )
    identifiers: Literal["real", "synthetic"] = Field(
        description="synthetic: headers are made up, so a published pseudonymisation key does no harm"
    )
    synthetic: str = Field("nothing", description="what in the data is made up")
    intended_use: IntendedUse
    expected: Expected = Field(default_factory=Expected)
    symmetric_axes: list[Axis] = Field(
        default_factory=list,
        description="axes along which a mirrored image could be another patient's, with the same label: only these "
        "may be flipped in training; empty = none, as where an organ has its side",
    )
    splits: dict[str, list[SplitName]] = Field(
        default_factory=dict,
        description="for each value of the column `split`, the splits that its patients may go to, e.g. val: [tune]",
    )
    known_traps: list[str] = Field(default_factory=list, description="what is known to be wrong with the data")
    study: StudyStatements = Field(default_factory=StudyStatements)
    LATER: ClassVar[frozenset[str]] = frozenset({"channels", "exam"})

    @field_validator("channels")
    @classmethod
    def _can_be_told(cls, value: list[CardChannel]) -> list[CardChannel]:
        if len({one.name for one in value}) < len(value):
            raise ValueError("names must be distinct")
        if len({way for one in value for way in one.ways}) > 1:
            raise ValueError("all channels must be told in the same way: description, suffix, axis or column")
        suffixes = [one.suffix.lower() for one in value if one.suffix]
        if any(one.endswith(other) for n, one in enumerate(suffixes) for m, other in enumerate(suffixes) if n != m):
            raise ValueError("a suffix is the end of another one: a file would be both channels")
        for way in ("axis", "column"):
            if value and way in value[0].ways and len({getattr(one, way) for one in value}) < len(value):
                raise ValueError(f"every {way} may be named once")
        return value

    @field_validator("further_labels")
    @classmethod
    def _distinct(cls, value: list[FurtherLabel]) -> list[FurtherLabel]:
        if min(len({label.id for label in value}), len({label.name for label in value})) < len(value):
            raise ValueError("ids and names must be distinct")
        return value

    @model_validator(mode="after")
    def _split_is_explained(self) -> Card:
        if (self.columns.split is None) != (not self.splits):
            raise ValueError("columns.split and splits go together: which column, and what its values mean")
        if any(not names for names in self.splits.values()):
            raise ValueError("splits: every value needs at least one split")
        return self
