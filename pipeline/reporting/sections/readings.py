"""How often patients were read, and what a verdict of theirs may therefore be called."""

from __future__ import annotations

from pipeline.reporting.evidence import Evidence
from pipeline.store.results.operating_point import AtTarget
from pipeline.store.wording import counted

NOT_CHECKED = "could not be checked"


def how_often_read(e: Evidence) -> str:
    """Say how often the test patients were read and under how many settings, as far as the ledger knows."""
    readings, models = e.metrics.readings, e.threshold.models_compared
    if readings is None:
        return "Whether test patients were read before is not known: no ledger was kept."
    if readings.times > 1:
        arms = ", ".join(readings.arms)
        return (
            f"Test patients, or some of them, were read {counted(readings.times, 'time')} under "
            f"{counted(readings.settings, 'setting')} (arms: {arms}): what is reported may have been chosen by them."
        )
    if models > 1:
        return f"Test patients were read once; {counted(models, 'model')} were calibrated or compared before."
    return "Test patients were read once, for this alone."


def briefly_read(e: Evidence) -> str:
    """Say the same of the test patients in as few words as page one has for it."""
    readings, models = e.metrics.readings, e.threshold.models_compared
    if readings is None:
        return "Whether they were read before is not known."
    if readings.times > 1:
        times, settings = counted(readings.times, "time"), counted(readings.settings, "setting")
        return f"They, or some, were read {times} under {settings}: results may have been chosen."
    if models > 1:
        return f"They were read once, after {counted(models, 'model')} were calibrated or compared."
    return "They were read once."


def verdict(verification: str | None, *, first: bool, few: int = 0) -> str:
    """Return a verdict in words: `confirmed` only where nothing can have been chosen by the patients who confirm it.

    `few`: how many patients with the condition a confirmation needs, where there are fewer.
    """
    if verification == "confirmed":
        return "confirmed" if first else "agrees"
    if verification == "not_confirmed":
        return f"too few to confirm ({few} needed)" if few else "neither confirmed nor contradicted"
    return "contradicted" if verification == "contradicted" else NOT_CHECKED


def verdict_of(e: Evidence, point: AtTarget | None) -> str:
    """Return the verdict on the certificate behind an operating point."""
    return NOT_CHECKED if point is None else verdict_of_point(point, first=e.read_first)


def verdict_of_point(point: AtTarget, *, first: bool) -> str:
    """Return the verdict on the certificate behind an operating point; `first` as for `verdict`."""
    few = 0 if point.can_confirm else point.positives_to_confirm
    return verdict(point.verification, first=first, few=few)
