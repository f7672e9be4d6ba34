"""What predict remembers of the objects that it made: which are there, and which replace which.

pydicom and highdicom are loaded when there is an object to make.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.delivery.dicom.source import SourceStudy
    from pipeline.inference.batch import Group
    from pipeline.inference.model import Predictions
    from pipeline.inference.result import Result


@dataclass(frozen=True)
class Archive:
    """The objects of a folder of results. `journal` holds its lines by identity, the earliest first."""

    folder: Path
    predictions: Predictions
    kinds: tuple[str, ...]
    journal: Mapping[str, dict[str, Any]]

    def has(self, line: dict[str, Any]) -> bool:
        """Say whether all objects of a line that are asked for are there."""
        made = line.get("dicom")
        if not self.kinds:
            return True
        return made is not None and {*self.kinds} <= {*made["kinds"]} and self._present(made)

    def _present(self, made: dict[str, Any]) -> bool:
        return all((self.folder / made["files"][kind]).is_file() for kind in self.kinds if kind in made["files"])

    def add(self, result: Result, group: Group) -> dict[str, Any]:
        """Write the objects about a study; return what the journal keeps of them, nothing when none were asked for."""
        if not self.kinds:
            return {}
        from pipeline.delivery.dicom import objects

        try:
            source = objects.source_of(result, group, self.predictions)
        except objects.NoObjectsError as error:
            return {"dicom": {**objects.none_made(error).to_json(), "kinds": self.kinds, "supersedes": ""}}
        earlier = self._earlier(result.identity, source)
        chain = [self.journal[one]["dicom"] for one in reversed([earlier, *self._before(earlier)] if earlier else [])]
        documents = [one for made in chain if (one := objects.document_of(made))]
        made = objects.write_objects(self.folder, result, source, self.predictions, self.kinds, documents)
        return {"dicom": {**made.to_json(), "kinds": self.kinds, "supersedes": earlier}}

    def _earlier(self, identity: str, source: SourceStudy) -> str:
        """Return the identity of what this result replaces: as was said before, else the latest of the study."""
        if known := self.journal.get(identity, {}).get("dicom"):
            return known["supersedes"]
        from pipeline.delivery.dicom.objects import replaces

        earlier = [name for name, line in self.journal.items() if replaces(source, line.get("dicom") or {})]
        return earlier[-1] if earlier else ""

    def _before(self, identity: str) -> Iterator[str]:
        """Yield what a result replaces, what that one replaced, and so on."""
        while identity and (identity := self.journal.get(identity, {}).get("dicom", {}).get("supersedes", "")):
            yield identity

    def fields(self, line: dict[str, Any]) -> dict[str, Any]:
        """Return what a row says of its objects; nothing when none were asked for."""
        if not self.kinds:
            return {}
        made = line["dicom"]
        earlier = self.journal.get(made["supersedes"], {}).get("dicom", {"files": {}})
        files = {"dicom": self._files(made), "dicom_missing": made["missing"]}
        return {**files, "supersedes": list(earlier["files"].values())}

    def _files(self, made: dict[str, Any]) -> list[str]:
        return [made["files"][kind] for kind in self.kinds if kind in made["files"]]

    def superseded(self, lines: Sequence[tuple[str, dict[str, Any]]]) -> list[dict[str, Any]]:
        """Return the rows that those of these lines replace, with what replaces them."""
        rows = []
        for name, line in lines if self.kinds else ():
            later = line
            for identity in self._before(line["identity"]):
                earlier = self.journal[identity]
                made = earlier["dicom"]
                row = {**earlier["row"], "study": name, "dicom": list(made["files"].values())}
                rows.append({**row, "superseded_by": list(later["dicom"]["files"].values())})
                later = earlier
        return rows
