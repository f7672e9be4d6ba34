"""Turn every image of a split into a row of a memory-mapped array, the same way for training and prediction."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from monai.data import set_track_meta

from pipeline.imaging.archive.sources import Source, find_sources, read_bytes
from pipeline.imaging.archive.workers import Pool, each_batch
from pipeline.imaging.image import Policy
from pipeline.imaging.pseudonyms import path_pseudonym
from pipeline.imaging.quarantine import Refusal, Refused
from pipeline.imaging.read import load_image
from pipeline.imaging.transforms import CHANNELS, Rendered, Rendering, render
from pipeline.store.files import atomic, read_json, sha256_bytes, write_json
from pipeline.store.tables.field_of_view import FIELD_OF_VIEW
from pipeline.store.tables.ingest import FILES, IMAGES
from pipeline.store.tables.io import read_table, write_table
from pipeline.store.tables.preprocess import INDEX
from pipeline.store.tables.split import FURTHER_LABELS, SPLIT, SPLITS

if TYPE_CHECKING:
    from pipeline.settings.images import PreprocessSettings
    from pipeline.settings.where import Machine
    from pipeline.store.artifacts import Inputs
    from pipeline.store.runlog import RunLog

SCRATCH = "scratch"
IMAGES_PER_TASK = 32
TIMEOUT_S = 600.0
# ingest has applied its limits to these very bytes; here they need no second opinion.
NO_LIMITS = Policy(
    max_file_bytes=1 << 40,
    max_pixel_bytes=1 << 40,
    accept_burned_in=True,
    accept_secondary_capture=True,
    accept_colour=True,
    accept_unclear_orientation=True,
    accept_any_kind=True,
    accept_for_processing=True,
    min_side=1,
)
# The files of one image, in order, each with its SHA-256.
Parts = tuple[tuple[Source, str], ...]


@dataclass(frozen=True)
class Shard:
    """The images of one array file, ordered by image_id."""

    name: str
    split: str
    rows: pd.DataFrame


def preprocess(settings: PreprocessSettings, inputs: Inputs, work: Path, log: RunLog) -> None:
    """Leave uint8 arrays `<split>-<number>.npy` of shape (N, C, H, W) or (N, 1, D, H, W), their indices, a summary,
    and with `crop` a table of what was cut out of each image.

    Further labels, if there are any, are divided by split, so that later stages see those of their own images alone.
    Finished shards are kept when a killed run goes on. Memory holds one shard at a time, on disk.

    Raises ValueError when a source has changed or gone since ingest, or does not fit `image_size`.
    """
    rows = _rows(inputs)
    _check_fits(rows, settings)
    files = read_table(inputs.file("ingest", "files.parquet"), FILES)
    files = files[files["image_id"].isin(rows["image_id"])]
    # Links that ingest refused are followed for nothing; what it left out is not in its tables.
    sources = find_sources(inputs.studies, follow_links=True)
    found = {path_pseudonym(inputs.secret, source.place): source for source in sources}
    missing = int((~files["source_id"].isin(found.keys())).sum())
    if missing:
        raise ValueError(f"{missing} of {len(files)} files are gone since ingest; restore them or run ingest again")
    parts = {
        str(image_id): tuple(
            (found[name], sha256) for name, sha256 in zip(group["source_id"], group["sha256"], strict=True)
        )
        for image_id, group in files.groupby("image_id")
    }
    how = Rendering.from_settings(settings.model_dump())
    scratch = work / SCRATCH
    scratch.mkdir(exist_ok=True)
    shards = list(_shards(rows, settings.shard_size))
    todo = [shard for shard in shards if not (_page(scratch, shard).exists() and (work / shard.name).exists())]
    start = sum(len(shard.rows) for shard in shards) - sum(len(shard.rows) for shard in todo)
    written = (None for shard in todo for _ in _write_shard(shard, parts, how, work, inputs.machine))
    for _ in log.track(written, "images", total=len(rows), start=start):
        pass
    pages = [read_json(_page(scratch, shard)) for shard in shards]
    padding = {image: pad for page in pages for image, pad in page["padding"].items()}
    _write_indices(shards, padding, work)
    for path in inputs.files("split", "further_labels.parquet"):
        _write_further_labels(read_table(path, FURTHER_LABELS), rows, work)
    summary = _summary(settings, rows, padding)
    if settings.crop == "field_of_view":
        fields = {image: field for page in pages for image, field in page["fields"].items()}
        summary["field_of_view"] = _write_fields(fields, work)
        if lost := summary["field_of_view"]["not_found"]:
            log.warn(
                f"in {lost} of {len(rows)} images no field of view was found; they were taken whole "
                "(field_of_view.parquet)"
            )
    if summary["cropped_images"]:
        log.warn(f"{summary['cropped_images']} images reach beyond image_size at this spacing and were cropped")
    log.info(", ".join(f"{name} {count}" for name, count in summary["counts"].items()) + " images")
    write_json(work / "summary.json", summary)
    shutil.rmtree(scratch)


def _rows(inputs: Inputs) -> pd.DataFrame:
    """Return the images to prepare with label, split, source and SHA-256, ordered by image_id."""
    images = read_table(inputs.file("ingest", "images.parquet"), IMAGES)[
        ["image_id", "axes", "pixel_hash", "spacing_mm"]
    ]
    chosen = read_table(inputs.file("split", "split.parquet"), SPLIT)
    rows = chosen.merge(images, on="image_id", how="left", validate="one_to_one")
    return rows.sort_values("image_id", ignore_index=True)


def _check_fits(rows: pd.DataFrame, settings: PreprocessSettings) -> None:
    """Refuse, before anything is read, a mixture of pictures and volumes, or images without the spacing needed."""
    volumes, axes = int((rows["axes"] == 3).sum()), len(settings.image_size)
    pictures = len(rows) - volumes
    problems = []
    if volumes and axes == 2:
        problems.append(f"{volumes} volumes, but preprocess.image_size has 2 sides")
    if pictures and axes == 3:
        problems.append(f"{pictures} two-dimensional images, but preprocess.image_size has 3 sides")
    if settings.spacing_mm is not None:
        unknown = int(rows["spacing_mm"].isna().sum())
        if unknown:
            problems.append(f"{unknown} images without pixel spacing, but preprocess.spacing_mm is set")
    if problems:
        raise ValueError("; ".join(problems))


def _shards(rows: pd.DataFrame, size: int) -> Iterator[Shard]:
    for name in SPLITS:
        part = rows[rows["split"] == name]
        for number, start in enumerate(range(0, len(part), size)):
            yield Shard(f"{name}-{number:03d}.npy", name, part.iloc[start : start + size])


def _page(scratch: Path, shard: Shard) -> Path:
    return scratch / f"{shard.name}.json"


def _write_shard(
    shard: Shard, parts: Mapping[str, Parts], how: Rendering, work: Path, machine: Machine
) -> Iterator[None]:
    """Write one array atomically and note the padding of its images; yield once per image."""
    rows = shard.rows[["image_id", "axes", "pixel_hash"]].to_dict("records")
    items = [(parts[row["image_id"]], row["axes"], row["pixel_hash"]) for row in rows]
    batches = {start: items[start : start + IMAGES_PER_TASK] for start in range(0, len(items), IMAGES_PER_TASK)}
    ids = list(shard.rows["image_id"])
    padding: dict[str, list[int]] = {}
    fields: dict[str, list[int]] = {}
    problems: dict[str, list[str]] = {}
    pool = Pool(machine.workers, TIMEOUT_S, machine.backend, machine.scheduler)
    with atomic(work / shard.name) as temporary:
        shape = (len(items), how.channel_count, *how.image_size)
        array = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.uint8, shape=shape)
        for start, results in each_batch(partial(_render, how), batches, pool, work / SCRATCH):
            for row, result in enumerate(results, start):
                if isinstance(result, Rendered):
                    array[row] = result.pixels
                    padding[ids[row]] = list(result.padding)
                    fields[ids[row]] = [int(result.cropped), *result.box]
                else:
                    problems.setdefault(_problem(result), []).append(ids[row])
                yield
        array.flush()
        del array
        if problems:
            listed = (f"{len(images)} images: {text} (first: {min(images)})" for text, images in problems.items())
            raise ValueError("; ".join(sorted(listed)))
    write_json(_page(work / SCRATCH, shard), {"padding": padding, "fields": fields})


def _render(how: Rendering, item: tuple[Parts, int, str]) -> Rendered | Refusal:
    parts, axes, pixel_hash = item
    torch.set_num_threads(1)  # the processes share the cores already
    set_track_meta(False)  # half the time of a small image would go into noting what was done to it
    contents = [read_bytes(source, NO_LIMITS.max_file_bytes) for source, _ in parts]
    if any(sha256_bytes(data) != sha256 for data, (_, sha256) in zip(contents, parts, strict=True)):
        raise Refused("unreadable", "changed since ingest")
    policy = replace(NO_LIMITS, keep_colour=how.channel_count > 1)
    return render(load_image(contents, axes, pixel_hash, policy), how)


def _problem(refusal: Refusal) -> str:
    if refusal == Refusal("unreadable", "changed since ingest"):
        return "the file has changed since ingest; run ingest again"
    return f"{refusal.reason}: {refusal.detail}"


def _write_indices(shards: Sequence[Shard], padding: dict[str, list[int]], work: Path) -> None:
    for name in SPLITS:
        parts = [
            shard.rows[["image_id", "patient_id", "label"]].assign(shard=shard.name, row=range(len(shard.rows)))
            for shard in shards
            if shard.split == name
        ]
        if parts:
            index = pd.concat(parts, ignore_index=True)
            index["padding"] = [[float(pixels) for pixels in padding[image]] for image in index["image_id"]]
            write_table(work / f"index_{name}.parquet", index, INDEX)


def _write_fields(fields: Mapping[str, Sequence[int]], work: Path) -> dict[str, int]:
    """Write what was cut out of each image; return in how many the field of view was found, and in how many not."""
    names = [column.name for column in FIELD_OF_VIEW.columns]
    table = pd.DataFrame([[image, bool(found), *box] for image, (found, *box) in fields.items()], columns=names)
    write_table(work / "field_of_view.parquet", table.sort_values("image_id", ignore_index=True), FIELD_OF_VIEW)
    return {"found": int(table["found"].sum()), "not_found": int((~table["found"]).sum())}


def _write_further_labels(further: pd.DataFrame, rows: pd.DataFrame, work: Path) -> None:
    of_image = rows.set_index("image_id")["split"]
    for name, own in further.groupby(further["image_id"].map(of_image)):
        write_table(work / f"further_labels_{name}.parquet", own, FURTHER_LABELS)


def _summary(settings: PreprocessSettings, rows: pd.DataFrame, padding: dict[str, list[int]]) -> dict[str, Any]:
    counts = rows["split"].value_counts()
    return {
        "image_size": list(settings.image_size),
        "channels": CHANNELS[settings.channels],
        "dtype": "uint8",
        "range": [0, 255],
        "window": settings.window,
        "window_percentiles": [settings.lower_percentile, settings.upper_percentile],
        "spacing_mm": settings.spacing_mm,
        "counts": {name: int(counts[name]) for name in SPLITS if name in counts},
        "padded_images": sum(max(pad) > 0 for pad in padding.values()),
        "cropped_images": sum(min(pad) < 0 for pad in padding.values()),
    }
