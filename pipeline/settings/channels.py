"""Whether a config goes with the channels that its card lists."""

from __future__ import annotations

from pipeline.settings.card import Card
from pipeline.settings.config import Config

# By these, a label would be about one of the channels.
OF_ONE_CHANNEL = ("series_instance_uid", "sop_instance_uid")


def channel_problems(config: Config, card: Card) -> list[str]:
    """Return what contradicts the card's channels in a config, or needs some where there are none."""
    where, problems = f"{config.data.card}: channels", []
    dropout = {
        stage: getattr(config, stage).augmentation.channel_dropout
        for stage in ("pretrain", "finetune")
        if getattr(config, stage).augmentation.channel_dropout
    }
    if not card.channels:
        zero = ["ingest.missing_channels zero"] if config.ingest.missing_channels == "zero" else []
        needing = zero + [f"{stage}.augmentation.channel_dropout" for stage in dropout]
        need = "needs" if len(needing) == 1 else "need"
        said = f"{config.data.card}: {' and '.join(needing)} {need} channels, and the card lists none"
        return [said] if needing else []
    if len(config.preprocess.image_size) != 3:
        problems.append(f"{where} are volumes, but preprocess.image_size has 2 sides")
    if config.preprocess.channels == "colour":
        problems.append(f"{where} and preprocess.channels colour exclude each other")
    if config.ingest.missing_channels == "zero" and "finetune" not in dropout:
        problems.append(
            f"{where}: ingest.missing_channels zero needs finetune.augmentation.channel_dropout above 0: a network "
            "must have seen every channel missing"
        )
    if card.columns.join in OF_ONE_CHANNEL and "axis" not in card.channels[0].ways:
        problems.append(f"{where}: columns.{card.columns.join} joins labels to one channel; join by study or patient")
    return problems
