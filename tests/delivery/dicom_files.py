"""What the tests of DICOM objects share: names in many alphabets, the validator, dumps."""

from __future__ import annotations

import io
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pydicom
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.tag import Tag

# PS3.5 H, I and K, and names in the alphabets of one byte: character set, bytes of the name.
NAMES = {
    "japanese": (
        ["", "ISO 2022 IR 87"],
        b"Yamada^Tarou=\x1b$B;3ED\x1b(B^\x1b$BB@O:\x1b(B=\x1b$B$d$^$@\x1b(B^\x1b$B$?$m$&\x1b(B",
    ),
    "half_width": (["ISO_IR 13", "ISO 2022 IR 87"], b"\xd4\xcf\xc0\xde^\xc0\xdb\xb3=\x1b$B;3ED\x1b(J^\x1b$BB@O:\x1b(J"),
    "korean": (["", "ISO 2022 IR 149"], b"Hong^Gildong=\x1b$)C\xfb\xf3^\x1b$)C\xd1\xce\xd4\xd7"),
    "chinese": ("GB18030", "Wang^XiaoDong=王^小东".encode("gb18030")),
    "arabic": ("ISO_IR 127", "قباني^لنزار".encode("iso8859_6")),
    "cyrillic": ("ISO_IR 144", "Люкceмбypг".encode("iso8859_5")),
    "utf8": ("ISO_IR 192", "Wang^XiaoDong=王^小東=".encode()),
    "undeclared": (None, "Müller^Jürgen".encode("latin-1")),
}


def with_bytes(content: bytes, **elements: tuple[str, bytes]) -> bytes:
    """Return a file with these elements, given as VR and bytes, whatever its character set says."""
    dataset = pydicom.dcmread(io.BytesIO(content))
    for keyword, (vr, value) in elements.items():
        value += b" " * (len(value) % 2)
        dataset[Tag(keyword)] = RawDataElement(Tag(keyword), vr, len(value), value, 0, False, True, True)
    stream = io.BytesIO()
    pydicom.dcmwrite(stream, dataset, enforce_file_format=True)
    return stream.getvalue()


def bytes_of(path: Path, keyword: str) -> bytes:
    """Return an element of a file as the bytes that it is."""
    element = pydicom.dcmread(path).get_item(Tag(keyword))
    return element.value if isinstance(element, RawDataElement) else b""


def errors_of(path: Path) -> list[str]:
    """Return what dciodvfy finds wrong with an object."""
    validator = shutil.which("dciodvfy", path=str(Path(sys.executable).parent)) or shutil.which("dciodvfy")
    assert validator, "dciodvfy is missing: pip install -e '.[dev]'"
    done = subprocess.run([validator, str(path)], capture_output=True, check=False)
    lines = (done.stdout + done.stderr).decode("utf-8", "replace").splitlines()
    assert any(line in ("Comprehensive3DSR", "EncapsulatedPDF", "SCImage", "Segmentation") for line in lines), lines
    return [line for line in lines if not line.startswith("Warning") and "rror" in line]


def dump(dataset: Dataset, version: str) -> str:
    """Return an object as text: UIDs of our own by the order of their appearance, no pixels, page and version."""
    for keyword in ("PixelData", "EncapsulatedDocument"):
        if keyword in dataset:
            del dataset[keyword]
    text = str(dataset)
    seen: dict[str, str] = {}
    text = re.sub(r"2\.25\.\d{30,}", lambda found: seen.setdefault(found[0], f"UID {len(seen) + 1}"), text)
    # Lengths follow from the digits of UIDs and from the page.
    kept = [line.rstrip() for line in text.splitlines() if not line.startswith(("(0002,0000)", "(0042,0015)"))]
    return "\n".join(kept).replace(version, "VERSION") + "\n"
