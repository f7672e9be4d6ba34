"""The objects about a study of the queue, as files beside its result, and which earlier results they replace."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.delivery.dicom.objects import (
    Made,
    NoObjectsError,
    document_of,
    make_objects,
    none_made,
    replaces,
    source_of,
)
from pipeline.delivery.dicom.source import SourceStudy
from pipeline.delivery.dicom.studies import OBJECTS, UNDELIVERED, Studies
from pipeline.delivery.queue import Entry
from pipeline.imaging.archive.sources import find_sources
from pipeline.inference.batch import Group
from pipeline.inference.model import Predictions
from pipeline.inference.result import Result
from pipeline.store.files import json_text, read_json


def dicom_files(kinds: Sequence[str]) -> Callable[[Entry, Result, Predictions, str], Mapping[str, bytes]]:
    """Return what writes the objects of these kinds for each study that is judged; see `worker.Writer`."""

    def write(entry: Entry, result: Result, predictions: Predictions, _at: str) -> dict[str, bytes]:
        # The page is called by what the archive calls the study: the id of the entry is another at each arrival.
        named = replace(result, study=result.study_uid or result.study)
        group = Group(named.study, result.study_uid, result.patient, tuple(find_sources([entry.files])), "")
        try:
            source = source_of(named, group, predictions)
        except NoObjectsError as error:
            return {OBJECTS: json_text(none_made(error).to_json()).encode()}
        root = entry.folder.parent.parent
        chain = list(_before(root, entry, source, predictions.model.sha256))
        documents = [one for made in chain if (one := document_of(made))]
        made = make_objects(named, source, predictions, kinds, documents)
        files = {kind: f"{kind}.dcm" for kind in made.files}
        about = Made(files, made.missing, source.subject, source.names, made.document).to_json()
        about |= {"model": predictions.model.sha256, "predecessors": [made["document"] for made in chain]}
        objects = {files[kind]: content for kind, content in made.files.items()}
        notes = {OBJECTS: about, UNDELIVERED: {"attempts": 0, "last": ""}}
        return objects | {name: json_text(content).encode() for name, content in notes.items()}

    return write


def _before(root: Path, entry: Entry, source: SourceStudy, model_sha256: str) -> list[dict[str, Any]]:
    """Return the results about the same study that this one replaces, the earliest first.

    A study that came again as it was has the predecessors of its first time: it gives the same objects.
    """
    chain = []
    for entry_id in Studies(root).entries(source.subject):
        path = root / "finished" / entry_id / OBJECTS
        if entry_id >= entry.id or not path.is_file():
            continue
        made = read_json(path)
        if made.get("model") != model_sha256 or not made.get("document") or not replaces(source, made):
            continue
        if {*made["evidence"]} == {*source.names}:
            return chain
        chain.append(made)
    return chain
