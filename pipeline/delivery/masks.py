"""The masks that predict leaves: NIfTI of volumes, PNG of pictures, DICOM SEG of DICOM images, each on its own grid."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.delivery import pages
from pipeline.delivery.reading_list import MASKS
from pipeline.imaging.archive.sources import Source, find_sources, read_bytes
from pipeline.imaging.masks.writing import source_header, write_mask_nifti, write_mask_png
from pipeline.inference.batch import Group
from pipeline.store.files import json_text, write_bytes

if TYPE_CHECKING:
    from pipeline.delivery.queue import Entry
    from pipeline.inference.model import Predictions
    from pipeline.inference.placement import DrawnMask
    from pipeline.inference.result import Result

FOLDER, QUEUED_FILE = "masks", "mask-{}"
UNKNOWN_GRID = "nobody knows how the volume lies in the patient"


@dataclass(frozen=True)
class MaskFiles:
    """The masks of a folder of results; nothing is written or said unless they were asked for.

    Without `segmentations`, which name the patient as their images do, those of DICOM images are PNG and NIfTI, too.
    """

    folder: Path
    predictions: Predictions
    segmentations: bool = True

    def has(self, line: dict[str, Any]) -> bool:
        """Say whether all masks of a line of the journal are there, where they are asked for."""
        if not self.predictions.masks:
            return True
        made = line.get("masks")
        return made is not None and all((self.folder / file).is_file() for file in made["files"])

    def add(self, result: Result, group: Group) -> dict[str, Any]:
        """Write a mask for each image of a study that was scored; return what the journal keeps of them."""
        if not self.predictions.masks:
            return {}
        place = f"{FOLDER}/{Path(pages.file_name(result.study)).stem}"
        sources = {source.path: source for source in group.sources}
        files, images, missing = [], [], []
        for number, drawn in enumerate(result.drawn, 1):
            if drawn.placement.format == "dicom" and self.segmentations:
                name, why = self._write_dicom(f"{place}/{number:03d}.dcm", drawn, sources, result, group)
            else:
                name, why = self._write_plain(f"{place}/{number:03d}", drawn, sources)
            if why:
                missing.append(f"{drawn.files[0]}: {why}")
            else:
                files.append(name)
                images.append(drawn.files[0])
        return {"masks": {"files": files, "images": images, "missing": missing}}

    def fields(self, line: dict[str, Any]) -> dict[str, Any]:
        """Return what a row says of its masks; nothing when none were asked for."""
        if not self.predictions.masks:
            return {}
        made = line["masks"]
        return {"masks": made["files"], "masks_of": made["images"], "masks_missing": made["missing"]}

    def _write_plain(self, name: str, drawn: DrawnMask, sources: Mapping[str, Source]) -> tuple[str, str]:
        mask, grid = drawn.placement.to_file(drawn.mask), drawn.placement.grid
        if mask.ndim == 2:
            write_mask_png(self.folder / f"{name}.png", mask, grid)
            return f"{name}.png", ""
        if grid.stored_affine is None:
            return "", UNKNOWN_GRID
        write_mask_nifti(self.folder / f"{name}.nii.gz", mask, grid, self._header(drawn, sources))
        return f"{name}.nii.gz", ""

    def _header(self, drawn: DrawnMask, sources: Mapping[str, Source]) -> bytes | None:
        """Return the NIfTI file, or header of a pair, that an image came from; None of another format."""
        files = drawn.files if drawn.placement.format == "nifti" else ()
        return source_header((self._bytes(sources[path]) for path in files), drawn.placement.grid)

    def _write_dicom(
        self, name: str, drawn: DrawnMask, sources: Mapping[str, Source], result: Result, group: Group
    ) -> tuple[str, str]:
        from pipeline.delivery.dicom import objects
        from pipeline.delivery.dicom.segmentation import segmentation

        try:
            source = objects.source_of(result, group, self.predictions)
        except objects.NoObjectsError as error:
            return "", "; ".join(objects.none_made(error).missing)
        # Of several channels, the mask lies on the grid of the first, and a segmentation is about its series alone.
        series = {one.path: one.series_uid for one in source.scored}
        own = [path for path in drawn.files if series[path] == series[drawn.files[0]]]
        contents = [self._bytes(sources[path]) for path in own]
        model = self.predictions.model
        mask, names = drawn.placement.to_file(drawn.mask), list(model.ensemble.structures.values())
        dataset = segmentation(mask, names, contents, model.policy, source, model)
        write_bytes(self.folder / name, objects.finished(dataset, "seg", source, self.predictions))
        return name, ""

    def _bytes(self, source: Source) -> bytes:
        return read_bytes(source, self.predictions.model.policy.max_file_bytes)


def queued_masks(segmentations: bool) -> Callable[[Entry, Result, Predictions, str], Mapping[str, bytes]]:
    """Return what writes the masks of each study of a queue whose model segments; see `worker.Writer`.

    `mask-001.dcm`, `.nii.gz` or `.png` and so on, and masks.json, which says what their numbers are.
    """

    def write(entry: Entry, result: Result, predictions: Predictions, _at: str) -> dict[str, bytes]:
        if not result.drawn:
            return {}
        # As with other objects, the id of the entry is another at each arrival.
        named = replace(result, study=result.study_uid or result.study)
        group = Group(named.study, result.study_uid, result.patient, tuple(find_sources([entry.files])), "")
        with tempfile.TemporaryDirectory(prefix="maescreen-") as folder:
            made = MaskFiles(Path(folder), predictions, segmentations).add(named, group)["masks"]
            files = {QUEUED_FILE.format(Path(name).name): (Path(folder) / name).read_bytes() for name in made["files"]}
        structures = {str(number): name for number, name in predictions.model.ensemble.structures.items()}
        named_first = [f"{drawn.files[0]}: " for drawn in result.drawn]  # a file's name is nobody else's
        why = {text.removeprefix(name) for text in made["missing"] for name in named_first if text.startswith(name)}
        about = {"structures": structures, "files": [*files], "images": len(result.drawn), "missing": sorted(why)}
        return {**files, MASKS: json_text(about).encode()}

    return write
