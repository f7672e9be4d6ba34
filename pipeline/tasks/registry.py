"""The tasks by name."""

from pipeline.tasks.classification import CLASSIFICATION
from pipeline.tasks.segmentation import SEGMENTATION

TASKS = {task.name: task for task in (CLASSIFICATION, SEGMENTATION)}
