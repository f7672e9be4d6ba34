"""What `ingest` reads of the studies of one dataset, as one digest: files, patterns that choose among them, links."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.imaging.archive.choice import has_images
from pipeline.store.files import sha256_json
from pipeline.store.lineage import SourceHashes, studies_digest

if TYPE_CHECKING:
    from pipeline.settings.where import Studies, Unlabelled


def chosen_digest(
    data: Studies | Unlabelled,
    hashes: SourceHashes,
    follow_links: bool,
    track: Callable[[Sequence[Path]], Iterable[Path]] = iter,
) -> str:
    """Return the digest of all files, and of the patterns and of where links lead, as far as ingest looks at these."""
    labels = None if data.labels and has_images(data.labels) else data.labels
    digest = studies_digest(data.studies, hashes, labels, track)
    if not (data.include or data.exclude or follow_links):
        return digest
    links = list(_links(data.studies)) if follow_links else []
    return sha256_json([digest, data.include, data.exclude, links])


def _links(roots: Sequence[Path]) -> Iterator[str]:
    """Yield each link under the roots with what it leads to there, never where the roots are."""
    resolved = [root.resolve() for root in roots]
    for number, root in enumerate(resolved):
        for folder, folders, names in os.walk(root):
            folders.sort()
            for link in (Path(folder, name) for name in sorted([*folders, *names])):
                if link.is_symlink():
                    target = Path(os.path.realpath(link))
                    inside = [f"{n}\0{target.relative_to(r)}" for n, r in enumerate(resolved) if r in target.parents]
                    yield ascii(f"{number}\0{link.relative_to(root)}\0{inside[:1]}")
