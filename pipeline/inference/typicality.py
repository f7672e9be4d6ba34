"""Whether a study is like those that the certificate speaks of.

An image is described by vectors (see description.py): the mean patch token at four depths of the network, each of
length 1 (Mueller & Hein 2025, Mahalanobis++), the picture itself, and how fine its detail is. How far a vector lies
from those of the training patients is its Mahalanobis distance (Lee et al. 2018; one mean for all classes, covariance
of Ledoit & Wolf 2004) and, for two of them, what is left of it outside the main subspace of the training images (ViM's
residual, Wang et al. 2022). The logarithm of each of these statistics is put on one scale by the tuning patients, and a
patient's value is the largest of all statistics of all images. Its rank among the values of the calibration patients is
a conformal p-value (Vovk et al. 2005; Bates et al. 2023), so that at most the chosen share of patients like them is
flagged.

Shapes: N images, D entries of a vector, K directions kept, S statistics.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.special import ndtri
from sklearn.covariance import LedoitWolf

from pipeline.store.files import atomic
from pipeline.store.wording import counted

SCHEMA = 1
DEPTHS = ("quarter", "half", "three_quarters", "full")
PICTURE, DETAIL = "picture", "detail"
NAMES = (*DEPTHS, PICTURE, DETAIL)
WITH_RESIDUAL = ("full", PICTURE)
MAIN_VARIANCE = 0.95
# Fewer give no covariance and no spread worth the name, and a mean that is nearly a patient.
LEAST_PATIENTS = {"training": 10, "tuning": 5, "calibration": 1}
TAIL, TAIL_NEEDS = 0.95, 200  # tuning patients: ten of them beyond the percentile
# Logarithms: a thousandth of the distance.
LEAST_SPREAD = 1e-3
LEAST_DISTANCE = 1e-9
ROUNDING = 1e-3  # of the calibration patients' values, upwards

WORDS = {
    "quarter": "what the network finds in the image after a quarter of its layers",
    "half": "what the network finds in the image half way through its layers",
    "three_quarters": "what the network finds in the image after three quarters of its layers",
    "full": "what the network finds in the image at its end",
    PICTURE: "the image's layout, grey levels and detail together",
    DETAIL: "how fine or coarse the image's detail is",
}
RESIDUAL_WORDS = ", in ways in which training images hardly differ"

Vectors = Mapping[str, np.ndarray]


class TypicalityError(ValueError):
    """No reference can be fitted to these patients, a file is none, or vectors do not belong to it."""


# ---------------------------------------------------------------- distances


@dataclass(frozen=True, eq=False)
class Space:
    """Where one vector of the training images lies.

    `mean` (D,); `whitener` (K, D), whose product with a centred vector has the Mahalanobis distance as its length;
    `main` (M, D), an orthonormal basis of the subspace with 95 % of their variance, or None.
    """

    mean: np.ndarray
    whitener: np.ndarray
    main: np.ndarray | None

    @classmethod
    def of(cls, vectors: np.ndarray, residual: bool) -> Space:
        """Fit to vectors (N, D). Where images are few, only their N / 2 strongest directions are kept."""
        mean = vectors.mean(axis=0)
        centred = vectors - mean
        variances, directions = np.linalg.eigh(centred.T @ centred / len(vectors))
        variances, directions = variances[::-1].clip(min=0), directions.T[::-1]
        kept = directions[: max(1, min(len(vectors) // 2, vectors.shape[1]))]
        covariance = LedoitWolf(assume_centered=True).fit(centred @ kept.T).covariance_
        scales, axes = np.linalg.eigh(covariance)
        # Shrinkage leaves no direction without variance; images that are all equal would.
        scales = np.maximum(scales, max(1e-9 * scales[-1], 1e-18))
        whitener = (axes / np.sqrt(scales)).T @ kept
        held = np.searchsorted(np.cumsum(variances), MAIN_VARIANCE * variances.sum()) + 1
        return cls(mean, whitener, directions[:held].copy() if residual else None)

    def statistics(self, vectors: np.ndarray) -> np.ndarray:
        """Return log distance and, with `main`, log residual of vectors (N, D), as (N, 1 or 2)."""
        centred = vectors - self.mean
        parts = [centred @ self.whitener.T]
        if self.main is not None:
            parts.append(centred - centred @ self.main.T @ self.main)
        lengths = np.stack([np.linalg.norm(part, axis=1) for part in parts], axis=1)
        return np.log(np.maximum(lengths, LEAST_DISTANCE))


# ---------------------------------------------------------------- the reference


@dataclass(frozen=True)
class Cohort:
    """Patients as `describe` gives them: vectors (N, D) by name, one row per image, and each image's patient (N,)."""

    vectors: Vectors
    patients: np.ndarray


@dataclass(frozen=True)
class Typicality:
    """How usual a study is.

    `p_value`: at most this share of patients like those of the calibration is as unusual. `flagged`: the certificate
    does not speak for this study. `statistic`: the largest of its statistics, in spreads of the tuning patients above
    their median; `largest` says in words which it was.
    """

    p_value: float
    flagged: bool
    statistic: float
    largest: str


@dataclass(frozen=True, eq=False)
class Reference:
    """What new studies are compared with; made by `fit`, kept in typicality.npz. No row of it is a patient's.

    `rate` is the share of ordinary patients that may be flagged. `centre` and `spread` (S,) are median and spread of
    the tuning patients, `calibration` (n,) the rising values of the calibration patients, rounded up.
    """

    rate: float
    spaces: Mapping[str, Space]
    centre: np.ndarray
    spread: np.ndarray
    calibration: np.ndarray

    @property
    def patients(self) -> int:
        """Calibration patients, n."""
        return len(self.calibration)

    @property
    def smallest_rate(self) -> float:
        """The smallest rate that so many calibration patients can keep and still flag somebody: 1 / (n + 1)."""
        return 1 / (self.patients + 1)

    @property
    def usable(self) -> bool:
        """Whether anybody can be flagged at the rate; without, nobody is."""
        return self.smallest_rate <= self.rate

    @property
    def statement(self) -> str:
        """What a flag means, or why there is none, in one sentence."""
        seen = f"compared with {counted(self.patients, 'calibration patient')}"
        if self.usable:
            return f"At most {100 * self.rate:g} % of patients like those of the calibration are flagged ({seen})."
        return (
            f"Nobody is flagged: a rate of {100 * self.rate:g} % needs at least {math.ceil(1 / self.rate - 1e-9) - 1} "
            f"calibration patients, and there are {self.patients}; "
            f"the smallest rate that they can keep is {100 * self.smallest_rate:.2g} %."
        )

    def of(self, vectors: Vectors) -> Typicality:
        """Return the typicality of one study from the vectors of its images, (N, D) by name, as `describe` gives them.

        Raises TypicalityError when they are not those that the reference was fitted to, or not finite.
        """
        values = self.standardised(vectors)
        image, place = np.unravel_index(values.argmax(), values.shape)
        value = float(values[image, place])
        p_value = self.p_value(value)
        return Typicality(p_value, p_value <= self.rate, value, self._words()[place])

    def p_value(self, value: float) -> float:
        """Return (1 + calibration patients with this value or a larger one) / (n + 1)."""
        return (1 + self.patients - int(np.searchsorted(self.calibration, value, side="left"))) / (self.patients + 1)

    def standardised(self, vectors: Vectors) -> np.ndarray:
        """Return all statistics (N, S) of images, in spreads of the tuning patients above their median; see `of`."""
        _check(vectors, {name: len(space.mean) for name, space in self.spaces.items()})
        return (_statistics(self.spaces, vectors) - self.centre) / self.spread

    def _words(self) -> list[str]:
        words = []
        for name, space in self.spaces.items():
            words += [WORDS[name]] if space.main is None else [WORDS[name], WORDS[name] + RESIDUAL_WORDS]
        return words

    def save(self, path: Path) -> None:
        """Write as .npz, atomically and without pickle; the same reference gives the same bytes."""
        arrays = {
            "schema": np.array(SCHEMA),
            "rate": np.array(self.rate),
            "names": np.array(list(self.spaces)),
            **{name: getattr(self, name) for name in ("centre", "spread", "calibration")},
        }
        for name, space in self.spaces.items():
            arrays |= {f"{name}.mean": space.mean, f"{name}.whitener": space.whitener}
            arrays |= {} if space.main is None else {f"{name}.main": space.main}
        with atomic(path) as temporary:
            np.savez(temporary, allow_pickle=False, **arrays)

    @classmethod
    def load(cls, path: Path) -> Reference:
        """Read what `save` wrote.

        Raises TypicalityError when the file is damaged, of another schema, or holds anything else.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
        except (OSError, ValueError, EOFError, AttributeError, zipfile.BadZipFile) as error:
            raise TypicalityError(
                f"{path.name} cannot be read as .npz without pickle: {type(error).__name__}"
            ) from error
        problem = _problem(arrays)
        if problem:
            raise TypicalityError(f"{path.name} is no reference that this version can use: {problem}")
        spaces = {
            name: Space(arrays[f"{name}.mean"], arrays[f"{name}.whitener"], arrays.get(f"{name}.main"))
            for name in arrays["names"].tolist()
        }
        return cls(float(arrays["rate"]), spaces, arrays["centre"], arrays["spread"], arrays["calibration"])


def fit(train: Cohort, tune: Cohort, calibration: Cohort, rate: float = 0.01) -> Reference:
    """Return the reference: distances from `train`, their scale from `tune`, ranks from `calibration`.

    No patient may be in two of them. The flag holds what it states for patients exchangeable with those of
    `calibration`, whatever the three are like otherwise. Raises TypicalityError when there are too few patients, when
    one is in two groups, or when vectors do not fit each other or are not finite; ValueError unless 0 < rate < 1.
    """
    if not 0 < rate < 1:
        raise ValueError(f"the share of ordinary patients flagged lies between 0 and 1, not {rate}")
    _check_cohorts({"training": train, "tuning": tune, "calibration": calibration})
    names = [name for name in NAMES if name in train.vectors]
    spaces = {name: Space.of(train.vectors[name], name in WITH_RESIDUAL) for name in names}
    tuned = _largest(_statistics(spaces, tune.vectors), tune.patients)
    centre = np.median(tuned, axis=0)
    spread = np.maximum(_spread(tuned - centre), LEAST_SPREAD)
    values = (_statistics(spaces, calibration.vectors) - centre) / spread
    per_patient = _largest(values.max(axis=1, keepdims=True), calibration.patients)[:, 0]
    return Reference(rate, spaces, centre, spread, np.sort(_rounded_up(per_patient)))


def _spread(deviations: np.ndarray) -> np.ndarray:
    """Return the spread (S,) of deviations from the median (P, S), such that a standard normal has 1.

    Of the upper tail, where ranks are read: a statistic with a heavy one would drown the others. With few patients that
    is too uncertain, and the median absolute deviation is taken.
    """
    if len(deviations) >= TAIL_NEEDS:
        return np.quantile(deviations, TAIL, axis=0) / ndtri(TAIL)
    return np.median(np.abs(deviations), axis=0) / ndtri(0.75)


def _statistics(spaces: Mapping[str, Space], vectors: Vectors) -> np.ndarray:
    return np.hstack([space.statistics(vectors[name]) for name, space in spaces.items()])


def _largest(values: np.ndarray, patients: np.ndarray) -> np.ndarray:
    """Return the largest values (P, S) of each patient from those of images (N, S)."""
    _, places = np.unique(patients, return_inverse=True)
    largest = np.full((places.max() + 1, values.shape[1]), -np.inf)
    np.maximum.at(largest, places, values)
    return largest


def _rounded_up(values: np.ndarray) -> np.ndarray:
    """Return values that are no smaller: more patients then count as just as unusual, so fewer are flagged."""
    rounded = np.ceil(values / ROUNDING) * ROUNDING
    return np.where(rounded < values, rounded + ROUNDING, rounded)


def _check_cohorts(cohorts: Mapping[str, Cohort]) -> None:
    sizes = {name: vectors.shape[-1] for name, vectors in cohorts["training"].vectors.items()}
    if not sizes or not sizes.keys() <= set(NAMES):
        raise TypicalityError("the vectors are not those of `describe`")
    for group, cohort in cohorts.items():
        _check(cohort.vectors, sizes, f"{group} patients: ", len(cohort.patients))
        there = len(np.unique(cohort.patients))
        if there < LEAST_PATIENTS[group]:
            raise TypicalityError(f"{there} {group} patients; typicality needs at least {LEAST_PATIENTS[group]}")
    groups = list(cohorts.items())
    for place, (name, cohort) in enumerate(groups):
        for other_name, other in groups[place + 1 :]:
            shared = len(np.intersect1d(cohort.patients, other.patients))
            if shared:
                raise TypicalityError(
                    f"{counted(shared, 'patient')} both in {name} and {other_name}; ranks mean nothing"
                )


def _check(vectors: Vectors, sizes: Mapping[str, int], who: str = "", images: int | None = None) -> None:
    """Raise TypicalityError unless there are exactly these vectors, for all images, at least one, and finite."""
    if vectors.keys() != sizes.keys():
        raise TypicalityError(f"{who}vectors {', '.join(vectors)} instead of {', '.join(sizes)}")
    images = len(next(iter(vectors.values()))) if images is None else images
    for name, vector in vectors.items():
        if images == 0 or vector.shape != (images, sizes[name]):
            raise TypicalityError(
                f"{who}vector {name} has shape {vector.shape} instead of ({images or 1}, {sizes[name]})"
            )
        if not np.isfinite(vector).all():
            raise TypicalityError(f"{who}vector {name} holds values that are not finite")


def _problem(arrays: Mapping[str, np.ndarray]) -> str | None:
    """Return what is wrong with the arrays of a file, or None."""
    if "schema" not in arrays or arrays["schema"].shape or int(arrays["schema"]) != SCHEMA:
        found = arrays["schema"].tolist() if "schema" in arrays else "none"
        return f"schema {found} instead of {SCHEMA}"
    names = arrays["names"].tolist() if "names" in arrays else []
    if not names or names != [name for name in NAMES if name in names]:
        return "unknown vectors"
    wanted = {"schema", "rate", "names", "centre", "spread", "calibration"}
    wanted |= {f"{name}.{part}" for name in names for part in ("mean", "whitener")}
    wanted |= {f"{name}.main" for name in names if name in WITH_RESIDUAL}
    if arrays.keys() != wanted:
        return f"arrays {', '.join(sorted(wanted ^ arrays.keys()))} missing or not expected"
    numbers = [array for name, array in arrays.items() if name not in ("names", "schema")]
    if any(array.dtype != np.float64 or not np.isfinite(array).all() for array in numbers):
        return "values that are not finite numbers"
    statistics = len(names) + sum(name in WITH_RESIDUAL for name in names)
    shapes = [arrays["centre"].shape == arrays["spread"].shape == (statistics,), arrays["rate"].shape == ()]
    for name in names:
        size = arrays[f"{name}.mean"].shape
        bases = [arrays[f"{name}.{part}"] for part in ("whitener", "main") if f"{name}.{part}" in arrays]
        shapes += [len(size) == 1, *(basis.ndim == 2 and basis.shape[1:] == size for basis in bases)]
    if not all(shapes):
        return "arrays whose sizes do not fit each other"
    values = arrays["calibration"]
    if values.ndim != 1 or not len(values) or (np.diff(values) < 0).any():
        return "calibration values that do not rise"
    return None if 0 < arrays["rate"] < 1 and (arrays["spread"] > 0).all() else "a rate or spread that is none"
