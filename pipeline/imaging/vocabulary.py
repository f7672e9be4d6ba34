"""Header values that may leave a file: each is matched against a closed list, so that free text cannot pass.

Terms: DICOM PS3.3 C.7.3.1.1.1 (modality), C.8.11.5.1.1 and PS3.16 CID 4010 (view), PS3.16 annex L (body part).
"""

from __future__ import annotations

import math
import re
from datetime import date

OTHER = "OTHER"
MODALITIES = frozenset(
    "AR BI BMD CR CT DG DX ES FID GM IO IVOCT IVUS LS MG MR NM OAM OCT OP OPM OPT OPTBSV OPTENF OPV OSS OT PA "
    "PT PX RF RG RTIMAGE SM TG US XA XC".split()
)
SINGLE_SLICE_MODALITIES = frozenset({"CT", "MR", "PT"})
VIEWS = frozenset("AP PA LL RL RLD LLD RLO LLO LAO RAO LPO RPO MLO CC ML LM LMO XCCL XCCM FB SIO ISO".split())
BODY_PARTS = frozenset(
    "ABDOMEN ABDOMENPELVIS ANKLE ARM BLADDER BRAIN BREAST CHEST CHESTABDOMEN CHESTABDPELVIS CLAVICLE COCCYX CSPINE "
    "ELBOW EXTREMITY EYE FEMUR FINGER FOOT HAND HEAD HEADNECK HEART HIP HUMERUS JAW KIDNEY KNEE LEG LIVER LSPINE LUNG "
    "MEDIASTINUM NECK ORBIT PANCREAS PELVIS PROSTATE RIB SACRUM SCAPULA SHOULDER SINUS SKULL SPINE SPLEEN SSPINE "
    "STERNUM TEETH THIGH THORAX THUMB TOE TSPINE UTERUS WHOLEBODY WRIST ZYGOMA".split()
)
# The first word found in the header's text gives the name.
MANUFACTURERS = {
    "siemens": "Siemens",
    "philips": "Philips",
    "fuji": "Fujifilm",
    "canon": "Canon",
    "toshiba": "Toshiba",
    "agfa": "Agfa",
    "carestream": "Carestream",
    "kodak": "Kodak",
    "konica": "Konica Minolta",
    "hologic": "Hologic",
    "lorad": "Hologic",
    "shimadzu": "Shimadzu",
    "samsung": "Samsung",
    "hitachi": "Hitachi",
    "united imaging": "United Imaging",
    "varian": "Varian",
    "esaote": "Esaote",
    "planmeca": "Planmeca",
    "swissray": "Swissray",
    "ge medical": "GE",
    "ge healthcare": "GE",
    "general electric": "GE",
}
# What some write out where the standard has a letter.
SIDES = {"LEFT": "L", "RIGHT": "R", "BOTH": "B", "BILATERAL": "B"}
SEXES = {"FEMALE": "F", "MALE": "M", "OTHER": "O"}
OLDEST_AGE = 90
MONTHS_PER_UNIT = {"Y": 12.0, "M": 1.0, "W": 12 / 52.18, "D": 12 / 365.25}


def modality(text: str) -> str:
    """Return the modality, OTHER when it is not in the list, or nothing when the header has none."""
    return _listed(text, MODALITIES, OTHER)


def view(text: str) -> str:
    """Return the view position, or nothing when it is not in the list."""
    return _listed(text, VIEWS, "")


def body_part(text: str) -> str:
    """Return the body part, OTHER when it is not in the list, or nothing when the header has none."""
    return _listed(text.replace(" ", ""), BODY_PARTS, OTHER)


def laterality(text: str) -> str:
    """Return L, R, B or nothing."""
    return _listed(SIDES.get(text.strip().upper(), text), frozenset("LRB"), "")


def sex(text: str) -> str:
    """Return F, M, O or nothing."""
    return _listed(SEXES.get(text.strip().upper(), text), frozenset("FMO"), "")


def manufacturer(text: str) -> str:
    """Return the manufacturer, OTHER when it is not in the list, or nothing when the header has none."""
    lower = text.strip().lower()
    if not lower:
        return ""
    found = next((name for word, name in MANUFACTURERS.items() if word in lower), None)
    return found or ("GE" if lower == "ge" else OTHER)


def _listed(text: str, values: frozenset[str], otherwise: str) -> str:
    upper = text.strip().upper()
    return upper if upper in values or not upper else otherwise


def day(text: str) -> date | None:
    """Return a DICOM date (YYYYMMDD; the old form with dots too), or None when it is not one."""
    digits = text.strip().replace(".", "")
    if not re.fullmatch(r"[0-9]{8}", digits):
        return None
    try:
        return date(int(digits[:4]), int(digits[4:6]), int(digits[6:]))
    except ValueError:
        return None


def age_years(age: str, born: date | None, studied: date | None) -> float | None:
    """Return the age at the study from an age string (PS3.5 6.2, AS), else from two dates, else None.

    Whole years, months as parts of a year in the first, and 90 for 90 and above: exact ages identify.
    """
    matched = re.fullmatch(r"([0-9]{1,3})([DWMY])", age.strip().upper())
    if matched:
        months = int(matched[1]) * MONTHS_PER_UNIT[matched[2]]
    elif born and studied:
        months = (studied - born).days * MONTHS_PER_UNIT["D"]
    else:
        return None
    if not 0 <= months <= 130 * 12:
        return None
    years = float(math.floor(months / 12 + 1e-9))
    return min(years, OLDEST_AGE) if years >= 1 else math.floor(months + 1e-9) / 12
