"""Turn every image of a split into a row of a memory-mapped array, the same way for training and prediction."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from monai.data import set_track_meta

from pipeline.imaging.archive.loading import image_of, load, read_contents
from pipeline.imaging.archive.sources import Source, find_sources, read_bytes
from pipeline.imaging.archive.workers import Pool, each_batch
from pipeline.imaging.channels import channels_of
from pipeline.imaging.image import Policy
from pipeline.imaging.masks.prepared import Masks, mask_grid, remarks
from pipeline.imaging.masks.reading import read_mask
from pipeline.imaging.masks.structures import NOT_ANNOTATED, Structures
from pipeline.imaging.pseudonyms import path_pseudonym
from pipeline.imaging.quarantine import Refusal, Refused
from pipeline.imaging.transforms import Rendered, Rendering, render
from pipeline.labels.channel_files import with_channels
from pipeline.store.files import atomic, read_json, sha256_bytes, sha256_json, write_json
from pipeline.store.tables.ingest import FILES, IMAGES
from pipeline.store.tables.io import read_table, write_table
from pipeline.store.tables.masks import MASK_GRID, MASKS, mask_name
from pipeline.store.tables.preprocess import INDEX
from pipeline.store.tables.rendered import CONTENTS, FIELD_OF_VIEW
from pipeline.store.tables.split import FURTHER_LABELS, SPLIT, SPLITS
from pipeline.store.wording import counted

if TYPE_CHECKING:
    from pipeline.settings.images import PreprocessSettings
    from pipeline.settings.where import Machine
    from pipeline.store.artifacts import Artifact, Inputs
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
    fill_channels=True,
    min_overlap=0.0,
)
# The files of one image, in order, each with its SHA-256.
Parts = tuple[tuple[Source, str], ...]
# Array file, row in it, padding, what was cut out of a rendered image, and the array file of masks, if there is one.
Place = tuple[Path, int, Sequence[float], Sequence[int], Path | None]


@dataclass(frozen=True)
class Shard:
    """The images of one array file, ordered by image_id."""

    name: str
    split: str
    rows: pd.DataFrame


@dataclass(frozen=True)
class Way:
    """How an image, and its mask where the dataset has some, becomes rows of the arrays."""

    rendering: Rendering
    policy: Policy
    structures: Structures | None


def preprocess(settings: PreprocessSettings, inputs: Inputs, work: Path, log: RunLog) -> None:
    """Leave uint8 arrays `<split>-<number>.npy` of shape (N, C, H, W) or (N, C, D, H, W), their indices, a summary,
    and with `crop` a table of what was cut out of each image. Where the dataset has masks, there is a file
    `masks-<split>-<number>.npy`, uint8 (N, H, W) or (N, D, H, W), beside each: the index of the structure that a pixel
    shows, 0 for none, 255 where nobody said (images without a mask, padding), and `mask_grid.parquet` with the spacing
    of the arrays.

    Further labels, if there are any, are divided by split, so that later stages see those of their own images alone.
    Finished shards are kept when a killed run goes on, and images that an earlier artifact has are copied: other labels
    or splits render nothing again. Memory holds one shard at a time, on disk.

    Raises ValueError when a source has changed or gone since ingest, or does not fit `image_size`.
    """
    rows = _rows(inputs)
    _check_fits(rows, settings)
    files = read_table(inputs.file("ingest", "files.parquet"), FILES)
    files = files[files["image_id"].isin(rows["image_id"])]
    # Links that ingest refused are followed for nothing; what it left out is not in its tables.
    sources = with_channels(find_sources(inputs.studies, follow_links=True), inputs.card, inputs.labels)
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
    channels = channels_of(inputs.card.model_dump())
    how = Rendering.from_settings(settings.model_dump(), [one.name for one in channels])
    policy = replace(NO_LIMITS, keep_colour=how.channels == "colour", channels=channels)
    scratch = work / SCRATCH
    scratch.mkdir(exist_ok=True)
    masks = _masks(inputs, found, rows)
    shards = list(_shards(rows, settings.shard_size))
    todo = [shard for shard in shards if not (_page(scratch, shard).exists() and (work / shard.name).exists())]
    start = sum(len(shard.rows) for shard in shards) - sum(len(shard.rows) for shard in todo)
    contents = _contents(rows, parts, masks)
    before = _before(inputs.previous, contents)
    if before:
        log.info(f"{counted(len(before), 'image is', 'images are')} taken over from an earlier artifact")
    way = Way(how, policy, None if masks is None else masks.structures)
    written = (None for shard in todo for _ in _write_shard(shard, parts, before, way, masks, work, inputs.machine))
    for _ in log.track(written, "images", total=len(rows), start=start):
        pass
    pages = [read_json(_page(scratch, shard)) for shard in shards]
    padding = {image: pad for page in pages for image, pad in page["padding"].items()}
    _write_indices(shards, padding, work)
    table = pd.DataFrame({"image_id": contents.keys(), "content": contents.values()})
    write_table(work / "contents.parquet", table, CONTENTS)
    for path in inputs.files("split", "further_labels.parquet"):
        _write_further_labels(read_table(path, FURTHER_LABELS), rows, work)
    summary = _summary(settings, how, rows, padding)
    fields = {image: field for page in pages for image, field in page["fields"].items()}
    if masks is not None:
        shown = {image: counts for page in pages for image, counts in page["shown"].items()}
        summary["masks"] = masks.summary(rows, shown)
        if taken := summary["masks"].get("taken_for_empty"):
            log.info(f"{counted(taken, 'negative image')} without a mask taken to show nothing (label.mask.missing)")
        for remark in remarks(summary["masks"]):
            log.warn(remark)
        write_table(work / "mask_grid.parquet", mask_grid(rows, padding, fields, how.image_size), MASK_GRID)
    if settings.crop == "field_of_view":
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
        ["image_id", "axes", "pixel_hash", "spacing_mm", "rows", "columns", "slices"]
    ]
    chosen = read_table(inputs.file("split", "split.parquet"), SPLIT)
    rows = chosen.merge(images, on="image_id", how="left", validate="one_to_one")
    return rows.sort_values("image_id", ignore_index=True)


def _masks(inputs: Inputs, found: Mapping[str, Source], rows: pd.DataFrame) -> Masks | None:
    """Return the masks that ingest accepted; None where the dataset has none. Raises ValueError when one is gone."""
    if not (tables := inputs.files("ingest", "masks.parquet")):
        return None
    structures = Structures.from_json(read_json(inputs.file("ingest", "structures.json")))
    return Masks.of(read_table(tables[0], MASKS), structures, found, rows)


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


def _contents(rows: pd.DataFrame, parts: Mapping[str, Parts], masks: Masks | None) -> dict[str, str]:
    """Return a digest of what each image is made of, its mask with it."""
    facts = zip(rows["image_id"], rows["axes"], rows["pixel_hash"], strict=True)
    of_mask = {} if masks is None else masks.contents
    return {
        name: sha256_json([int(axes), pixels, [one for _, one in parts[name]], *of_mask.get(name, ())])
        for name, axes, pixels in facts
    }


def _before(artifact: Artifact | None, contents: Mapping[str, str]) -> dict[str, Place]:
    """Return where an earlier artifact has the images that are still made of the same."""
    if artifact is None or "contents.parquet" not in artifact.record["files"]:
        return {}
    known = read_table(artifact.file("contents.parquet"), CONTENTS)
    same = {name for name, one in zip(known["image_id"], known["content"], strict=True) if contents.get(name) == one}
    indices = [name for name in sorted(artifact.record["files"]) if name.startswith("index_")]
    index = pd.concat([read_table(artifact.file(name), INDEX) for name in indices])
    index = index[index["image_id"].isin(same)]
    files = {shard: artifact.file(shard) for shard in index["shard"].unique()}
    fields: dict[str, Sequence[int]] = {}
    if "field_of_view.parquet" in artifact.record["files"]:
        table = read_table(artifact.file("field_of_view.parquet"), FIELD_OF_VIEW)
        fields = {name: [int(value) for value in row] for name, *row in table.itertuples(index=False)}
    cut = [fields.get(name, []) for name in index["image_id"]]
    masks = {shard: artifact.file(mask) for shard in files if (mask := mask_name(shard)) in artifact.record["files"]}
    masks = [masks.get(shard) for shard in index["shard"]]
    places = zip(index["shard"].map(files), index["row"], index["padding"], cut, masks, strict=True)
    return dict(zip(index["image_id"], places, strict=True))


def _copy(
    before: Mapping[str, Place], ids: Sequence[str], array: np.ndarray, shown: np.ndarray | None
) -> Iterator[str]:
    """Fill the rows of those images that were there before, and of their masks; yield each."""
    wanted = [(str(before[name][0]), row, name) for row, name in enumerate(ids) if name in before]
    for file, group in groupby(sorted(wanted), key=itemgetter(0)):
        pixels = np.load(file, mmap_mode="r", allow_pickle=False)
        for _, row, name in group:
            array[row] = pixels[before[name][1]]
            # Without a mask file, no image of that artifact had a mask: this one's would have made its content another.
            if shown is not None and (mask := before[name][4]) is not None:
                shown[row] = np.load(mask, mmap_mode="r", allow_pickle=False)[before[name][1]]
            yield name


def _write_shard(
    shard: Shard,
    parts: Mapping[str, Parts],
    before: Mapping[str, Place],
    way: Way,
    masks: Masks | None,
    work: Path,
    machine: Machine,
) -> Iterator[None]:
    """Write one array, and that of the masks, atomically, and note the padding of its images; yield once per image."""
    ids = list(shard.rows["image_id"])
    rows = shard.rows[["image_id", "axes", "pixel_hash"]].to_dict("records")
    of_image = {} if masks is None else masks.files
    items = {
        n: (parts[row["image_id"]], row["axes"], row["pixel_hash"], of_image.get(row["image_id"]))
        for n, row in enumerate(rows)
    }
    left = [n for n, name in enumerate(ids) if name not in before]
    batches = {start: left[start : start + IMAGES_PER_TASK] for start in range(0, len(left), IMAGES_PER_TASK)}
    tasks = {start: [items[n] for n in batch] for start, batch in batches.items()}
    padding: dict[str, list[int]] = {}
    fields: dict[str, list[int]] = {}
    problems: dict[str, list[str]] = {}
    pool = Pool(machine.workers, TIMEOUT_S, machine.backend, machine.scheduler)
    counts: dict[str, list[int]] = {}
    structures = way.structures
    with ExitStack() as stack:
        shape = (len(items), way.rendering.channel_count, *way.rendering.image_size)
        array = _new_array(stack.enter_context(atomic(work / shard.name)), shape)
        shown = None
        if structures is not None:
            shown = _new_array(stack.enter_context(atomic(work / mask_name(shard.name))), (shape[0], *shape[2:]))
            shown[:] = NOT_ANNOTATED
        for name in _copy(before, ids, array, shown):
            padding[name], fields[name] = [int(side) for side in before[name][2]], list(before[name][3])
            yield
        for start, results in each_batch(partial(_render, way), tasks, pool, work / SCRATCH):
            for row, result in zip(batches[start], results, strict=True):
                if isinstance(result, Refusal):
                    problems.setdefault(_problem(result), []).append(ids[row])
                else:
                    rendered, mask = result
                    array[row] = rendered.pixels
                    padding[ids[row]] = list(rendered.padding)
                    fields[ids[row]] = [int(rendered.cropped), *rendered.box]
                    if shown is not None and mask is not None:
                        shown[row] = mask
                yield
        array.flush()
        del array
        if structures is not None and shown is not None:
            counts = {name: structures.counts(shown[row]) for row, name in enumerate(ids) if name in of_image}
            shown.flush()
            del shown
        if problems:
            listed = (f"{len(images)} images: {text} (first: {min(images)})" for text, images in problems.items())
            raise ValueError("; ".join(sorted(listed)))
    page = {"padding": padding, "fields": fields}
    write_json(_page(work / SCRATCH, shard), page if masks is None else {**page, "shown": counts})


def _new_array(path: Path, shape: tuple[int, ...]) -> np.memmap:
    return np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)


def _render(
    way: Way, item: tuple[Parts, int, str, tuple[Source | None, str] | None]
) -> tuple[Rendered, np.ndarray | None]:
    parts, axes, pixel_hash, mask = item
    torch.set_num_threads(1)  # the processes share the cores already
    set_track_meta(False)  # half the time of a small image would go into noting what was done to it
    sources, hashes = zip(*parts, strict=True)
    if way.structures is None or mask is None:
        return render(load(sources, axes, pixel_hash, way.policy, hashes), way.rendering), None
    contents = read_contents(sources, way.policy, hashes)
    image = image_of(contents, sources, axes, pixel_hash, way.policy)
    rendered = render(image, way.rendering)
    if mask[0] is None:
        return rendered, rendered.of_image(np.zeros(image.pixels.shape, np.uint8), NOT_ANNOTATED)
    data = read_bytes(mask[0], NO_LIMITS.max_file_bytes)
    if sha256_bytes(data) != mask[1]:
        raise Refused("unreadable", "changed since ingest")
    indices = read_mask(data, image, contents, way.structures, NO_LIMITS)
    return rendered, rendered.of_image(indices, NOT_ANNOTATED)


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


def _summary(
    settings: PreprocessSettings, how: Rendering, rows: pd.DataFrame, padding: dict[str, list[int]]
) -> dict[str, Any]:
    counts = rows["split"].value_counts()
    return {
        **({"channel_names": list(how.channel_names)} if how.channel_names else {}),
        "image_size": list(settings.image_size),
        "channels": how.channel_count,
        "dtype": "uint8",
        "range": [0, 255],
        "window": settings.window,
        "window_percentiles": [settings.lower_percentile, settings.upper_percentile],
        "spacing_mm": settings.spacing_mm,
        "counts": {name: int(counts[name]) for name in SPLITS if name in counts},
        "padded_images": sum(max(pad) > 0 for pad in padding.values()),
        "cropped_images": sum(min(pad) < 0 for pad in padding.values()),
    }
