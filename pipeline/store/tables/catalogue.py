"""Every table by name, for what reads them all: the report, the reference."""

# ruff: noqa: F401 -- handed on

from pipeline.store.tables.calibrate import PATIENT_SCORES, SWEEP
from pipeline.store.tables.evaluate import (
    ARM_COLUMNS,
    CALIBRATION_CURVE,
    COMPARISON,
    CURVES,
    LABEL_FRACTIONS,
    SUBGROUPS,
)
from pipeline.store.tables.exam import EXAM
from pipeline.store.tables.ingest import (
    ASSEMBLED,
    EXAMINED,
    FILES,
    IMAGE_COLUMNS,
    IMAGES,
    MEASURED_COLUMNS,
    NEAR_DUPLICATES,
    QUALITY,
    QUARANTINE,
)
from pipeline.store.tables.io import Column, Table, read_table, write_table
from pipeline.store.tables.masks import MASK_GRID, MASKS
from pipeline.store.tables.preprocess import INDEX
from pipeline.store.tables.rendered import CONTENTS, FIELD_OF_VIEW
from pipeline.store.tables.score import FURTHER_SCORES, LABEL_FRACTION_SCORES, LABELLED_PATIENTS, MARKS, SCORES
from pipeline.store.tables.segmentation import FROC, SEGMENTATION_COMPARISON, SEGMENTATION_PATIENTS
from pipeline.store.tables.split import FURTHER_LABELS, LABEL_ID, SPLIT, SPLITS, UNMATCHED
from pipeline.store.tables.unlabelled import LEFT_OUT
