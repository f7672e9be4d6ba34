"""Which packaged model a reference means: a folder, or a config whose run is finished."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.inference.model_folder import ModelError
from pipeline.store.artifacts import Store
from pipeline.store.wording import counted

if TYPE_CHECKING:
    from pipeline.settings.card import Card
    from pipeline.settings.config import Config

STEP, FOLDER = "package", "model"


def folder_of_run(config: Config, card: Card, secret: bytes | None) -> Path:
    """Return the model folder of a finished run. Raises ModelError when `package` has not been made."""
    from pipeline.orchestration.plan import plan

    step = next(step for step in plan(config, card, secret) if step.name == STEP)
    artifact = Store(config.store).find(STEP, step.key)
    if artifact is None:
        raise ModelError("this run has no packaged model yet; run: maescreen run CONFIG")
    return artifact.path / FOLDER


def check_there(reference: Path) -> None:
    """Raise ModelError where a reference is neither a folder nor a file."""
    if not reference.exists():
        raise ModelError(f"{reference}: no such file or folder; a model is its folder, or the CONFIG of a finished run")


def info(content: dict[str, Any], sha256: str) -> dict[str, Any]:
    """Return what `maescreen model info` says: all of model.json that is not numbers for a computer."""
    rule = {name: value for name, value in content["rule"].items() if name not in ("probability_band", "calibrator")}
    left_out = ("rule", "further_rules", "schema")
    return {"sha256": sha256, **{k: v for k, v in content.items() if k not in left_out}, "rule": rule}


def lines(found: dict[str, Any]) -> list[str]:
    """Return the same as lines for people."""
    rule, test, network = found["rule"], found["test"], found["network"]
    points = [
        f"recall {point['recall_target']:g} with {100 * point['confidence']:g} % confidence: refer from logit "
        f"{point['threshold']:.4f} ({point['positives']} positives, {point['source']})"
        for point in rule["operating_points"]
    ]
    auc = test["auc"]["value"]
    return [
        f"model        {found['sha256']}",
        f"title        {found['title'].strip()}",
        f"judges       {', '.join(label['name'] for label in found['labels'])}",
        f"network      arm {network['arm']}, {counted(len(network['seeds']), 'seed')}, {network['description']}",
        f"usable       {'yes' if rule['usable'] else 'no: ' + '; '.join(rule['not_usable_because'])}",
        *(f"operates at  {point}" for point in points),
        *(f"scope        {sentence}" for sentence in found["scope"]),
        f"tested on    {test['patients']} patients, {test['positives']} with the condition; AUC "
        + ("not available" if auc is None else f"{auc:.3f}"),
        *(f"not for      {line}" for line in found["not_for"]),
        f"made by      maescreen {found['made_by']['versions']['maescreen']}, commit "
        f"{found['made_by']['git_commit'][:12] or 'unknown'}, Python {found['made_by']['versions']['python']}",
    ]
