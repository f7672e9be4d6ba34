"""Nothing that identifies a patient in a header, a path or a file name comes out again."""

import io
import re
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pydicom
import pypdf
import pytest
from project import Project, make_project
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.store.files import sha256_file

IDENTIFYING = ("PatientName", "PatientID", "PatientBirthDate", "OtherPatientIDs", "PatientAddress", "AccessionNumber",
               "ReferringPhysicianName", "InstitutionName", "StudyDate", "StudyInstanceUID", "SeriesInstanceUID",
               "SOPInstanceUID", "ImageComments", "StudyDescription")  # fmt: skip
DIGITS = re.compile(rb"\d{1,16}")
# A date may stand inside a hash by chance; alone it may not.
NUMBERS = re.compile(rb"(?<![0-9a-f.])\d{6,16}(?![0-9a-f])")


def planted(studies: Path) -> dict[str, set[bytes]]:
    """Return every identifying value of every header, by its attribute; names also by their parts."""
    found: dict[str, set[bytes]] = {name: set() for name in IDENTIFYING}
    with zipfile.ZipFile(studies) as archive:
        for member in archive.namelist():
            header = pydicom.dcmread(io.BytesIO(archive.read(member)), stop_before_pixels=True)
            for name in IDENTIFYING:
                value = str(header.get(name, "") or "")
                parts = re.split(r"[\^\s]+", value) if name.endswith("Name") else [value]
                found[name].update(part.encode() for part in [value, *parts] if len(part) >= 6)
            found.setdefault("private", set()).update(
                str(element.value).encode()
                for element in header
                if element.tag.is_private and len(str(element.value)) >= 6
            )
    return found


def readable(path: Path) -> bytes:
    """Return the bytes of a file and, where it is compressed, what a reader would see."""
    content = path.read_bytes()
    if path.suffix == ".parquet":
        table = pq.read_table(path)
        hashes = [name for name in table.column_names if table.schema.field(name).type == pa.binary()]
        content += str(table.drop_columns(hashes).to_pydict()).encode()
        content += b"".join(value for name in hashes for value in table[name].to_pylist() if value is not None)
        content += str(pq.read_schema(path).metadata).encode()
    if path.suffix == ".pdf":
        pdf = pypdf.PdfReader(path)
        content += "\n".join(page.extract_text() for page in pdf.pages).encode() + str(pdf.metadata).encode()
    return content


def leaks(content: bytes, values: dict[str, set[bytes]]) -> list[str]:
    numbers = set(NUMBERS.findall(content))
    return [
        f"{name}: {text.decode()}"
        for name, texts in values.items()
        for text in texts
        if (text in numbers if DIGITS.fullmatch(text) else text in content)
    ]


def test_no_planted_identifier_in_store_database_reports_or_logs(finished):
    values = planted(finished.folder / "studies.zip")
    assert all(values[name] for name in ("PatientName", "PatientID", "PatientBirthDate", "private"))
    said = (finished.folder / "said.txt").read_bytes()
    assert b"ingest" in said
    assert leaks(said, values) == []
    written = [path for folder in (finished.store, finished.folder / "reports") for path in folder.rglob("*")]
    assert len(written) > 50
    seen = set()
    for path in written:
        assert leaks(str(path.relative_to(finished.folder)).encode(), values) == []
        # Reports lie in the store, in MLflow and beside the config.
        if path.is_file() and (digest := sha256_file(path)) not in seen:
            seen.add(digest)
            assert leaks(readable(path), values) == [], path.relative_to(finished.folder)


@pytest.mark.slow
def test_exceptions_about_broken_files_carry_no_header_text(tmp_path):
    """Every study is cut in the middle of its pixels: nothing can be read, and the error says so in safe words."""
    project = make_project(tmp_path / "Hollerbusch^Wendelin")
    whole = project.folder / "studies.zip"
    values = planted(whole)
    with zipfile.ZipFile(whole) as good, zipfile.ZipFile(project.folder / "cut.zip", "w") as cut:
        for member in good.namelist():
            cut.writestr(member, good.read(member)[:-1500])
    (project.folder / "cut.zip").replace(whole)
    result = CliRunner().invoke(app, ["run", str(project.config), "--until", "split"])
    assert result.exit_code == 1
    assert leaks((result.output + result.stderr).encode(), values) == []
    for path in Project(project.folder).store.rglob("*"):
        if path.is_file():
            assert leaks(readable(path), values) == []
