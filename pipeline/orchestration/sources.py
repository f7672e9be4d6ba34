"""What a run reads from outside the store: studies, label tables, cards, keys, weights, fonts, as digests."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from pipeline.imaging import pseudonyms
from pipeline.models.arm_registry import pretrained
from pipeline.orchestration.chosen_studies import chosen_digest
from pipeline.orchestration.graph import UNLABELLED
from pipeline.settings.card import Card, CardColumns, CardMask
from pipeline.settings.config import Config
from pipeline.settings.load import read_card
from pipeline.settings.where import Studies, Unlabelled
from pipeline.store.artifacts import Store
from pipeline.store.files import sha256_file, sha256_json
from pipeline.store.lineage import Code, SourceHashes, code_digests, studies_digest
from pipeline.store.runlog import RunLog

Dataset = tuple[Studies | Unlabelled, Card]


def datasets(config: Config, card: Card) -> dict[str, Dataset]:
    """Return the studies and card of each external test set by its name, those of the run by an empty name, and those
    without labels, where something is pretrained, as UNLABELLED."""
    data = config.data
    found: dict[str, Dataset] = {"": (data, card)}
    found |= {one.name: (one, read_card(one.card)) for one in data.external}
    if data.without_labels and pretrained(config.finetune.arms):
        found[UNLABELLED] = (data.without_labels, _without_labels(card))
    return found


def externals(names: Iterable[str]) -> list[str]:
    """Return which of the names of datasets are those of external test sets."""
    return [name for name in names if name not in ("", UNLABELLED)]


def _without_labels(card: Card) -> Card:
    """Return the card by which images without labels are read: no masks or examinations, patients by path."""
    columns = CardColumns(path="path", patient_id="patient_id", patient_from=card.columns.patient_from)
    label = card.label.model_copy(update={"mask": None})
    return card.model_copy(update={"columns": columns, "label": label, "further_labels": [], "exam": None})


def sources(config: Config, dataset: Dataset, secret: bytes | None, code: Code) -> dict[str, str]:
    """Return the digest of each thing from outside the store, as fine as the stages use it."""
    (data, card), hashes = dataset, source_hashes(config, secret)
    used = {}
    if data.labels is not None:
        used |= _tables(data.labels, card, hashes, code)
    if "imported" in config.finetune.arms and config.data.imported_weights is not None:
        used["imported_weights"] = hashes.of(config.data.imported_weights)
    if config.pretrain.start == "imported" and config.data.imported_weights is not None:
        used["start_weights"] = hashes.of(config.data.imported_weights)
    if config.report.fonts is not None:
        used["fonts"] = studies_digest([config.report.fonts], hashes)
    if card.further_labels:
        used["further_labels"] = sha256_json([label.model_dump() for label in card.further_labels])
    if card.channels:
        used["channels"] = _channels(data.labels, card, hashes, code)
    return {
        **used,
        "studies": chosen_digest(data, hashes, config.ingest.links == "inside", _track_hashing),
        "join": card.columns.join,
        "label": sha256_json(card.label.model_dump(exclude={"mask"})),
        "columns": sha256_json(card.columns.model_dump()),
        "expected": sha256_json(card.expected.model_dump()),
        "splits": sha256_json(card.splits),
        "key": _newest_key(config) if secret is None else pseudonyms.fingerprint(secret),
        "card": sha256_json(card.model_dump()),
        "purpose": "external test set",
    }


def _tables(file: Path, card: Card, hashes: SourceHashes, code: Code) -> dict[str, str]:
    """Return the digests of what the label table says: all of it, and by the questions that stages ask it."""
    labels = sha256_file(file)
    used = {"labels": labels, "patients": _patients(file, labels, card.columns, hashes, code)}
    if card.label.mask is not None:
        used["masks"] = _masks(file, labels, card.columns, card.label.mask, hashes, code)
    if card.exam or card.columns.view or card.columns.laterality:
        used["exam"] = sha256_json([card.exam and card.exam.model_dump(), _exams(file, labels, card, hashes, code)])
    return used


def _patients(file: Path, sha256: str, columns: CardColumns, hashes: SourceHashes, code: Code) -> str:
    """Return the digest of whose the files are, as far as the label table says; it is read when it is new."""

    def read() -> str:
        from pipeline.labels.identity import patients_digest
        from pipeline.labels.path_rules import PathRule

        column, rule = getattr(columns, columns.join), PathRule(**columns.path_rule)
        return patients_digest(file, columns.join, column, columns.patient_id, columns.patient_from, rule)

    by = [sha256, file.suffix, columns.model_dump(), code_digests("pipeline.labels.identity", code)]
    return hashes.derived(["patients", *by], read)


def _masks(file: Path, sha256: str, columns: CardColumns, mask: CardMask, hashes: SourceHashes, code: Code) -> str:
    """Return the digest of which files are masks of what; the label table is read when it is new."""

    def read() -> str:
        from pipeline.labels.mask_files import masks_digest

        return masks_digest(mask, columns, file)

    code_of = code_digests("pipeline.labels.mask_files", code)
    return hashes.derived(["masks", sha256, file.suffix, columns.model_dump(), mask.model_dump(), code_of], read)


def _channels(file: Path | None, card: Card, hashes: SourceHashes, code: Code) -> str:
    """Return the digest of how channels are told; the label table is read when it is new and tells them."""
    said = [channel.model_dump() for channel in card.channels]
    if file is None or not any(channel.column for channel in card.channels):
        return sha256_json(said)

    def read() -> str:
        from pipeline.labels.channel_files import named_channels

        return sha256_json([said, sorted(named_channels(card, file).items())])

    code_of = code_digests("pipeline.labels.channel_files", code)
    return hashes.derived(["channels", sha256_file(file), file.suffix, card.columns.model_dump(), said, code_of], read)


def _exams(file: Path, sha256: str, card: Card, hashes: SourceHashes, code: Code) -> str:
    """Return the digest of what the label table says of views and sides; it is read when it is new."""
    columns = card.columns.model_dump()

    def read() -> str:
        from pipeline.labels.exam import exams_digest
        from pipeline.labels.path_rules import PathRule

        return exams_digest(file, columns, card.columns.join, PathRule(**card.columns.path_rule))

    return hashes.derived(["exams", sha256, file.suffix, columns, code_digests("pipeline.labels.exam", code)], read)


def _newest_key(config: Config) -> str:
    """Return the fingerprint of the key that made the newest ingest of the project, or an empty text."""
    made = (one.record for one in Store(config.store).all("ingest"))
    return next((record["sources"]["key"] for record in made if record["project"] == config.project), "")


def source_hashes(config: Config, secret: bytes | None) -> SourceHashes:
    """Return the hashes of source files that the store remembers."""
    # Without a key, nothing may be kept that names of files could be guessed from.
    return SourceHashes(secret, config.store / "source_hashes.sqlite") if secret else SourceHashes()


def _track_hashing(paths: Sequence[Path]) -> Iterator[Path]:
    return RunLog("plan").track(paths, "files hashed", total=len(paths))
