"""What MLflow runs to serve a registered model. Each version holds a copy of this file, and no pickle.

A request is a table: `content`, the bytes of one file or zip archive per study, and `study`, its name, which may be
left out. The answer is the rows of results.json. Threshold and all else are the model's own; there is no parameter.
"""

from __future__ import annotations

import logging
from typing import Any

import mlflow
import pandas as pd
from mlflow.exceptions import MlflowException

from pipeline.inference.model import Model
from pipeline.inference.table import judge_table

MLFLOW_SAYS = ("`params` can only be specified", "Unrecognized params")


class _NoParameters(logging.Filter):
    """Makes an error of the warning by which MLflow drops parameters that a model does not know (mlflow#18522)."""

    def filter(self, record: logging.LogRecord) -> bool:
        if record.getMessage().startswith(MLFLOW_SAYS):
            raise MlflowException.invalid_parameter_value(
                "the model takes no parameters: its threshold is part of it; leave out params"
            )
        return True


class StudyModel(mlflow.pyfunc.PythonModel):
    """A packaged model behind MLflow's interface."""

    def load_context(self, context: Any) -> None:
        """Load and check the model's folder. Raises ModelError."""
        self.model = Model.load(context.artifacts["model"], say=logging.getLogger(__name__).warning)
        logger = logging.getLogger("mlflow.models.utils")
        logger.setLevel(logging.WARNING)
        if not any(type(one).__name__ == _NoParameters.__name__ for one in logger.filters):
            logger.addFilter(_NoParameters())

    # With a hint of `model_input`, MLflow would make a schema of them, beside the one that the version states.
    def predict(self, context, model_input, params=None) -> Any:
        """Return the rows of results.json, one for each row of a table with `content` and perhaps `study`."""
        names = model_input["study"] if "study" in model_input else [None] * len(model_input)
        studies = [None if pd.isna(name) else str(name) for name in names]
        return judge_table(self.model, [bytes(content) for content in model_input["content"]], studies)


mlflow.models.set_model(StudyModel())
