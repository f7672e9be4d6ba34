"""A packaged model as MLflow serves it: code, signature and example beside the folder as it was packaged; no pickle."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

# isort: split
import mlflow
import pandas as pd
import yaml
from mlflow.models import ModelSignature
from mlflow.types.schema import AnyType, Array, ColSpec, DataType, Schema

MODEL = "model"
ARTIFACT = f"artifacts/{MODEL}"


@dataclass(frozen=True)
class Serving:
    """How MLflow serves a model: the file that it runs, a table as it takes, and the kinds of rows' fields by name."""

    code: Path
    example: pd.DataFrame
    columns: Mapping[str, str]


def write_pyfunc(folder: Path, model: Path, requirements: Sequence[str], serving: Serving) -> None:
    """Write the model as MLflow's own format into `folder`: code, signature, example, the folder as it was packaged."""
    save = mlflow.pyfunc.save_model  # imports the module, which makes rules for warnings of its own
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of MLflow about pandas and hints, to somebody who can do nothing about it
        save(
            path=str(folder),
            python_model=str(serving.code),
            artifacts={MODEL: str(model)},
            signature=_signature(serving.columns),
            input_example=serving.example,
            pip_requirements=list(requirements),
        )
    record = folder / "MLmodel"
    content = yaml.safe_load(record.read_text("utf-8"))
    flavor = content["flavors"]["python_function"]
    # MLflow notes where things came from on this machine; it reads none of it.
    flavor["artifacts"][MODEL]["uri"] = ARTIFACT
    flavor["model_code_path"] = serving.code.name
    record.write_text(yaml.safe_dump(content, sort_keys=False), "utf-8")
    shutil.rmtree(folder / "__pycache__", ignore_errors=True)


def _signature(columns: Mapping[str, str]) -> ModelSignature:
    kinds = {
        "text": DataType.string,
        "number": DataType.double,
        "count": DataType.long,
        "truth": DataType.boolean,
        "texts": Array(DataType.string),
        "object": AnyType(),
    }
    taken = Schema([ColSpec("binary", "content"), ColSpec("string", "study", required=False)])
    # Every field may be missing but those that name the study and the decision.
    return ModelSignature(taken, Schema([ColSpec(kinds[kind], name, required=False) for name, kind in columns.items()]))
