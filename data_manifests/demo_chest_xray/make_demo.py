"""Make the demo data: real chest radiographs as DICOM files with made-up headers, in one reproducible zip.

    python make_demo.py SOURCE OUTPUT

SOURCE holds `labels.csv` (path, patient_id, label 0/1) and the JPEG images of Kermany et al. (2018) that it names.
OUTPUT receives `studies.zip` and `labels.csv`. Patients are drawn with a fixed seed, all images of a drawn patient
are taken, and the JPEG bytes go into the DICOM files as they are: nothing is decoded or encoded again.
Every header value is drawn from made-up words, independently of the label.
"""

from __future__ import annotations

import argparse
import csv
import io
import random
import zipfile
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path

from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.filewriter import dcmwrite
from pydicom.uid import (
    ComputedRadiographyImageStorage,
    DigitalXRayImageStorageForPresentation,
    JPEGBaseline8Bit,
)

SEED = 20180222  # the day the source was published
IMAGES_WANTED = 1200
FIRST_DAY = date(2013, 1, 7)
DAYS = 5 * 365
IMPLEMENTATION_UID = "2.25.179530226417923871648713862347135712893"

# Words that stand nowhere else, so that a search of outputs for them shows whether a header leaked.
FAMILY = (
    "Quillfeather Brambleworth Zephyrsnood Wobblethorpe Marzipanik Thistlewumpus Gherkinsby Plumduffle Snorkelhaus "
    "Butterquark Fiddlemarch Humblefrock Jigglestone Krumpetovic Larkspindle Mufflebrook Noodlecombe Oxbowtie "
    "Pumpernix Quagswaggle Rumpledore Sassafrink Trundlewick Umbercrank Vexelbloom Whiskerdale Xylobrand Yodelmeyer "
    "Zigzagorin Bumblecroft"
).split()
GIVEN = (
    "Aldwinkle Bexabelle Crispindra Dorvallan Elphigenia Fennimora Gwimbly Hortimund Izzabrook Jaspernelle Kettlina "
    "Lumbardo Mirabix Nimbelot Ottowin Pipperly Quentara Rosalock Sylvanook Tuppencia Ulmarick Vindelora Wilfrenda "
    "Xanthope Yewbert Zinnimar"
).split()
STREETS = "Teapot Pancake Lantern Umbrella Marmalade Thimble Pepperpot Windmill".split()
TOWNS = "Crumpetville Lower-Noodlington Fogglesham Port-Gherkin Upper-Tweedlewick".split()
PHYSICIANS = "Doctorberry^Hespera Stethopoulos^Milo Scalpelmann^Odette Plasterby^Iggy Thermometz^Wanda".split()
REMARKS = (
    "Seen with {guardian}, telephone 555-01{number:02d}",
    "Child would not hold still; {guardian} present",
    "Repeat film asked for by {physician}",
    "Compare with earlier film of {name}",
)


@dataclass(frozen=True)
class Site:
    """A made-up hospital and the real make of its X-ray equipment."""

    name: str
    manufacturer: str
    modality: str
    sop_class: str


SITES = (
    Site("Marzipanum Krankelhaus", "SIEMENS", "DX", DigitalXRayImageStorageForPresentation),
    Site("Crumpetina Infirmarium", "FUJIFILM Corporation", "CR", ComputedRadiographyImageStorage),
    Site("Fogglesham Klinikarium", "Philips Medical Systems", "DX", DigitalXRayImageStorageForPresentation),
)


@dataclass(frozen=True)
class Patient:
    """A made-up person."""

    name: str
    identifier: str
    other_identifier: str
    sex: str
    born: date
    address: str
    guardian: str
    site: Site
    first_study: date


def main() -> None:
    """Read the arguments and write the archive and the labels."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("output", type=Path)
    arguments = parser.parse_args()
    with (arguments.source / "labels.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    # Separate generators: a change in how headers are made must not change which patients are drawn.
    chosen = draw_patients(rows, random.Random(f"{SEED} patients"))
    headers = random.Random(f"{SEED} headers")
    arguments.output.mkdir(parents=True, exist_ok=True)
    labels = []
    with zipfile.ZipFile(arguments.output / "studies.zip", "w") as archive:
        for number, images in enumerate(chosen, 1):
            patient = make_patient(number, headers)
            day = patient.first_study
            for image, row in enumerate(images, 1):
                member = f"studies/{number:04d}/{number:04d}-{image}.dcm"
                content = make_dicom((arguments.source / row["path"]).read_bytes(), patient, day, image, headers)
                add(archive, member, content)
                labels.append((member, "pneumonia" if row["label"] == "1" else "normal"))
                day += timedelta(days=headers.choice((0, 1, 2, 3, 5, 8)))
    with (arguments.output / "labels.csv").open("w", newline="") as stream:
        csv.writer(stream, lineterminator="\n").writerows([("path", "label"), *labels])
    print(f"{len(chosen)} patients, {len(labels)} images")


def draw_patients(rows: list[dict[str, str]], generator: random.Random) -> list[list[dict[str, str]]]:
    """Return the rows of randomly drawn patients, a list per patient, until there are enough images."""
    by_patient: dict[str, list[dict[str, str]]] = {}
    for row in rows:
        by_patient.setdefault(row["patient_id"], []).append(row)
    order = sorted(by_patient)
    generator.shuffle(order)
    chosen: list[list[dict[str, str]]] = []
    count = 0
    for patient in order:
        if count >= IMAGES_WANTED:
            break
        chosen.append(sorted(by_patient[patient], key=lambda row: row["path"]))
        count += len(by_patient[patient])
    return chosen


def make_patient(number: int, generator: random.Random) -> Patient:
    """Return a made-up person of one to five years at the first study."""
    family, given, guardian = generator.choice(FAMILY), generator.choice(GIVEN), generator.choice(GIVEN)
    first_study = FIRST_DAY + timedelta(days=generator.randrange(DAYS))
    # The upper limit leaves a year, so that a patient with studies for months stays five.
    age_days = generator.randrange(366, 5 * 365)
    return Patient(
        name=f"{family}^{given}",
        identifier=f"ZQX-{generator.randrange(10**7):07d}-{number:04d}",
        other_identifier=f"WVK{generator.randrange(10**9):09d}",
        sex=generator.choice("FM"),
        born=first_study - timedelta(days=age_days),
        address=f"{generator.randrange(1, 200)} {generator.choice(STREETS)} Lane, {generator.choice(TOWNS)}",
        guardian=f"{guardian} {family}",
        site=generator.choice(SITES),
        first_study=first_study,
    )


def make_dicom(jpeg: bytes, patient: Patient, day: date, number: int, generator: random.Random) -> bytes:
    """Return a DICOM file that holds the JPEG's own bytes under a made-up header."""
    sop_instance_uid = made_up_uid(generator)
    dataset = Dataset()
    dataset.SpecificCharacterSet = "ISO_IR 192"
    dataset.ImageType = ["DERIVED", "PRIMARY"]
    dataset.SOPClassUID = patient.site.sop_class
    dataset.SOPInstanceUID = sop_instance_uid
    dataset.StudyDate = dataset.SeriesDate = dataset.ContentDate = dicom_date(day)
    dataset.StudyTime = dataset.ContentTime = (
        f"{generator.randrange(7, 20):02d}{generator.randrange(60):02d}{generator.randrange(60):02d}"
    )
    dataset.AccessionNumber = f"ACQ{generator.randrange(10**8):08d}"
    dataset.Modality = patient.site.modality
    dataset.PresentationIntentType = "FOR PRESENTATION"
    dataset.Manufacturer = patient.site.manufacturer
    dataset.InstitutionName = patient.site.name
    physician = generator.choice(PHYSICIANS)
    dataset.ReferringPhysicianName = physician
    dataset.StudyDescription = f"Chest film for {physician.replace('^', ' ')}"
    dataset.PatientName = patient.name
    dataset.PatientID = patient.identifier
    dataset.PatientBirthDate = dicom_date(patient.born)
    dataset.PatientSex = patient.sex
    dataset.OtherPatientIDs = patient.other_identifier
    dataset.PatientAge = f"{(day - patient.born).days // 365:03d}Y"
    dataset.PatientAddress = patient.address
    dataset.BodyPartExamined = "CHEST"
    dataset.ViewPosition = "AP"
    dataset.StudyInstanceUID = made_up_uid(generator)
    dataset.SeriesInstanceUID = made_up_uid(generator)
    dataset.StudyID = str(number)
    dataset.SeriesNumber = 1
    dataset.InstanceNumber = 1
    remark = generator.choice(REMARKS)
    dataset.ImageComments = remark.format(
        guardian=patient.guardian,
        physician=physician.replace("^", " "),
        name=patient.name.replace("^", " "),
        number=generator.randrange(100),
    )
    private = dataset.private_block(0x0011, "MARZIPAN DEMO", create=True)
    private.add_new(0x01, "LO", f"{patient.name} {patient.identifier}")
    # JFIF files with chroma subsampling are YBR_FULL_422 in DICOM whatever the subsampling (correction CP-1653).
    dataset.SamplesPerPixel = 3
    dataset.PhotometricInterpretation = "YBR_FULL_422"
    dataset.PlanarConfiguration = 0
    dataset.Rows, dataset.Columns = jpeg_size(jpeg)
    dataset.BitsAllocated = dataset.BitsStored = 8
    dataset.HighBit = 7
    dataset.PixelRepresentation = 0
    dataset.BurnedInAnnotation = "NO"
    dataset.LossyImageCompression = "01"
    dataset.LossyImageCompressionMethod = "ISO_10918_1"
    dataset.PixelData = encapsulate([jpeg])
    dataset["PixelData"].is_undefined_length = True
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.MediaStorageSOPClassUID = patient.site.sop_class
    dataset.file_meta.MediaStorageSOPInstanceUID = sop_instance_uid
    dataset.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    dataset.file_meta.ImplementationClassUID = IMPLEMENTATION_UID
    dataset.file_meta.ImplementationVersionName = "DEMO"
    stream = io.BytesIO()
    dcmwrite(stream, dataset, enforce_file_format=True)
    return stream.getvalue()


def jpeg_size(jpeg: bytes) -> tuple[int, int]:
    """Return height and width from the frame header of a baseline JPEG (ITU-T T.81, B.2.2)."""
    position = 2
    while jpeg[position + 1] != 0xC0:
        position += 2 + int.from_bytes(jpeg[position + 2 : position + 4], "big")
    height, width = jpeg[position + 5 : position + 7], jpeg[position + 7 : position + 9]
    return int.from_bytes(height, "big"), int.from_bytes(width, "big")


def made_up_uid(generator: random.Random) -> str:
    """Return a UID under 2.25 (DICOM PS3.5 B.2)."""
    return f"2.25.{generator.getrandbits(122)}"


def dicom_date(day: date) -> str:
    """Return a date as DICOM writes it."""
    return day.strftime("%Y%m%d")


def add(archive: zipfile.ZipFile, member: str, content: bytes) -> None:
    """Add a file with a fixed time and mode, so that the same content gives the same archive."""
    entry = zipfile.ZipInfo(member, date_time=(2018, 2, 22, 0, 0, 0))
    entry.compress_type = zipfile.ZIP_STORED  # deflate output differs between zlib builds
    entry.external_attr = 0o100644 << 16
    entry.create_system = 3
    archive.writestr(entry, content)


if __name__ == "__main__":
    main()
