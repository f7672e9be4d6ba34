"""Validity is simulated and proved on ties; what must be flagged is flagged on toy radiographs."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import betabinom, binom

from pipeline.inference.description import describe
from pipeline.inference.typicality import (
    DEPTHS,
    DETAIL,
    PICTURE,
    WORDS,
    Cohort,
    Reference,
    TypicalityError,
    fit,
)
from pipeline.models.classifier import Classifier
from pipeline.models.vit import EncoderSpec


def network(size=(32, 32), patch=(8, 8), channels=1, depth=4) -> Classifier:
    torch.manual_seed(3)
    spec = EncoderSpec(size, patch, channels, 24, depth, 2, (0.5,) * channels, (0.2,) * channels)
    return Classifier(spec, "norm_linear").eval()


def radiographs(number: int, seed: int, size=(32, 32)) -> torch.Tensor:
    """Return toy chests, (N, 1, *size): two dark lungs in a bright body on a dark ground, a little noise."""
    generator = np.random.default_rng(seed)
    places = np.meshgrid(*(np.linspace(-1, 1, side) for side in size), indexing="ij")
    y, x = places[-2:]
    images = []
    for _ in range(number):
        shift, wide, high = generator.normal(0, 0.05), generator.normal(0.3, 0.03), generator.normal(0.65, 0.05)
        body = 0.55 + 0.2 * generator.random() - 0.2 * x**2
        lungs = [np.exp(-((((x - side - shift) / wide) ** 2 + (y / high) ** 2) ** 2)) for side in (-0.45, 0.45)]
        image = np.where(np.abs(x - shift) < 0.92, body * (1 - 0.8 * sum(lungs)), 0.02)
        images.append(np.broadcast_to(image, size) + generator.normal(0, 0.01, size))
    stored = np.round(255 * np.clip(images, 0, 1)) / 255
    return torch.from_numpy(stored[:, None].astype(np.float32))


def cohort(vectors, first: int, images_each: int = 1) -> Cohort:
    number = len(next(iter(vectors.values())))
    return Cohort(vectors, np.array([f"patient-{first + row // images_each}" for row in range(number)]))


@pytest.fixture(scope="module", params=["network", "none"])
def fitted(request) -> tuple[Classifier | None, Reference]:
    model = network() if request.param == "network" else None
    parts = [describe(model, radiographs(number, seed)) for number, seed in ((200, 1), (40, 2), (120, 3))]
    return model, fit(*(cohort(vectors, 1000 * place) for place, vectors in enumerate(parts)), rate=0.02)


def one(vectors, row: int) -> dict[str, np.ndarray]:
    return {name: vector[row : row + 1] for name, vector in vectors.items()}


def flagged(model, reference, images: torch.Tensor) -> np.ndarray:
    vectors = describe(model, images)
    return np.array([reference.of(one(vectors, row)).flagged for row in range(len(images))])


# ---------------------------------------------------------------- what is stated holds


def drawn(generator, patients: int, first: int) -> Cohort:
    """Return patients of one to three images, with heavy tails that are shared by the images of a patient."""
    each = generator.integers(1, 4, patients)
    names = np.repeat([f"patient-{first + n}" for n in range(patients)], each)
    wild = np.repeat(generator.chisquare(3, patients), each)[:, None]
    vectors = {name: generator.normal(size=(len(names), size)) / wild for name, size in ((PICTURE, 8), (DETAIL, 3))}
    return Cohort(vectors, names)


def of_patients(reference: Reference, group: Cohort) -> list[bool]:
    found = []
    for name in np.unique(group.patients):
        rows = group.patients == name
        found.append(reference.of({key: vector[rows] for key, vector in group.vectors.items()}).flagged)
    return found


def test_the_flagged_share_of_new_patients_lies_within_exact_binomial_limits():
    generator = np.random.default_rng(0)
    rate, draws, hits = 0.1, 500, 0
    for _ in range(draws):
        reference = fit(*(drawn(generator, n, 1000 * k) for k, n in enumerate((30, 15, 49))), rate=rate)
        hits += of_patients(reference, drawn(generator, 1, 9000))[0]
    low, high = binom.interval(0.99, draws, rate)
    assert low <= hits <= high


def test_every_split_of_one_pool_lies_within_its_limits():
    generator = np.random.default_rng(1)
    train, tune, pool = drawn(generator, 60, 0), drawn(generator, 30, 1000), drawn(generator, 599, 2000)
    patients, shares = np.unique(pool.patients), []
    for _ in range(20):
        chosen = np.isin(pool.patients, generator.permutation(patients)[:199])
        parts = [
            Cohort({k: v[rows] for k, v in pool.vectors.items()}, pool.patients[rows]) for rows in (chosen, ~chosen)
        ]
        hits = sum(of_patients(fit(train, tune, parts[0], rate=0.05), parts[1]))
        # Given the calibration patients, the share that is flagged is Beta(10, 190) of 200 ranks.
        low, high = betabinom.interval(0.999, 400, 10, 190)
        assert low <= hits <= high
        shares.append(hits / 400)
    assert 0.04 <= np.mean(shares) <= 0.06


@pytest.mark.parametrize("rate", [0.01, 0.05, 0.1, 0.37])
@pytest.mark.parametrize("number", [5, 20, 101])
@pytest.mark.parametrize("tied", [False, True])
def test_of_any_patients_no_more_than_the_rate_are_flagged_by_the_others(rate, number, tied):
    """The proof itself: of n + 1 patients at most rate (n + 1) are flagged by the n others, whatever they are."""
    generator = np.random.default_rng(2)
    group = drawn(generator, number, 9000)
    group = Cohort(
        {name: np.round(vector) if tied else vector for name, vector in group.vectors.items()}, group.patients
    )
    everybody = fit(*_two(generator), group, rate=rate)
    hits = 0
    for name in np.unique(group.patients):
        vectors = {key: vector[group.patients == name] for key, vector in group.vectors.items()}
        # The first value that is no smaller is the patient's own, rounded.
        own = np.searchsorted(everybody.calibration, everybody.of(vectors).statistic)
        hits += replace(everybody, calibration=np.delete(everybody.calibration, own)).of(vectors).flagged
    assert hits <= rate * number


def _two(generator) -> tuple[Cohort, Cohort]:
    return drawn(generator, 30, 0), drawn(generator, 15, 1000)


def test_rounding_keeps_the_guarantee_and_the_p_value_counts_equals(fitted):
    model, reference = fitted
    vectors = describe(model, radiographs(120, 3))
    values = np.sort([reference.of(one(vectors, row)).statistic for row in range(120)])
    assert (reference.calibration >= values).all()
    assert (reference.calibration < values + 2e-3).all()
    # Each calibration patient, judged anew, finds themselves among those who are as unusual.
    p_values = np.array([reference.of(one(vectors, row)).p_value for row in range(120)])
    assert (p_values >= 2 / 121).all()


def test_equal_values_count_as_just_as_unusual(fitted):
    reference = replace(fitted[1], calibration=np.array([0.0, 1.0, 1.0, 2.0]))
    assert [reference.p_value(value) for value in (-1.0, 0.0, 1.0, 1.5, 2.0, 2.1)] == [1, 1, 0.8, 0.4, 0.4, 0.2]


def test_a_patient_is_as_unusual_as_their_most_unusual_image(fitted):
    model, reference = fitted
    images = radiographs(5, 7)
    images[3] = 1 - images[3]
    vectors = describe(model, images)
    each = [reference.of(one(vectors, row)) for row in range(5)]
    together = reference.of(vectors)
    assert together.statistic == pytest.approx(max(single.statistic for single in each))
    assert together.p_value == min(single.p_value for single in each)
    assert each[3].flagged
    assert together.flagged


def test_all_images_of_a_patient_count_in_the_calibration():
    generator = np.random.default_rng(4)
    train, tune = _two(generator)
    calm = {PICTURE: generator.normal(size=(20, 8)), DETAIL: generator.normal(size=(20, 3))}
    wild = {name: np.vstack([vector, 1e3 * vector[:1]]) for name, vector in calm.items()}
    names = np.array([f"c{n}" for n in range(20)])
    without = fit(train, tune, Cohort(calm, names), rate=0.1)
    with_it = fit(train, tune, Cohort(wild, np.append(names, "c0")), rate=0.1)
    assert without.patients == with_it.patients == 20
    assert with_it.calibration[-1] > without.calibration[-1] + 1


@pytest.mark.parametrize("tuning", [199, 200])
def test_a_spread_is_that_of_a_standard_normal(tuning):
    generator = np.random.default_rng(9)
    train, calibration = drawn(generator, 30, 0), drawn(generator, 20, 5000)
    # Distances from the mean whose logarithms are normal with spread 0.5.
    lengths = np.exp(generator.normal(0, 0.5, (tuning, 1)))
    vectors = {}
    for name, vector in train.vectors.items():
        whitener = fit(train, drawn(generator, 9, 3000), calibration).spaces[name].whitener
        direction = np.linalg.solve(whitener, np.eye(len(whitener))[0])
        vectors[name] = vector.mean(axis=0) + lengths * direction
    tuned = fit(train, Cohort(vectors, np.array([f"tuning-{n}" for n in range(tuning)])), calibration)
    assert tuned.spread[0] == pytest.approx(0.5, rel=0.25)
    assert np.abs(tuned.centre[0]) < 0.2


# ---------------------------------------------------------------- too few


def test_too_few_calibration_patients_flag_nobody_and_say_what_they_could_keep():
    generator = np.random.default_rng(5)
    reference = fit(*_two(generator), drawn(generator, 98, 2000), rate=0.01)
    outlier = {PICTURE: np.full((1, 8), 1e6), DETAIL: np.full((1, 3), 1e6)}
    found = reference.of(outlier)
    assert not found.flagged
    assert found.p_value == 1 / 99
    assert not reference.usable
    assert reference.smallest_rate == 1 / 99
    assert "at least 99 calibration patients, and there are 98" in reference.statement
    assert "1 %" in reference.statement


def test_as_many_as_needed_flag():
    generator = np.random.default_rng(5)
    reference = fit(*_two(generator), drawn(generator, 99, 2000), rate=0.01)
    assert reference.usable
    assert reference.of({PICTURE: np.full((1, 8), 1e6), DETAIL: np.full((1, 3), 1e6)}).flagged
    assert reference.statement.startswith("At most 1 % of patients like those of the calibration are flagged")


def test_few_training_images_of_many_entries_give_a_reference():
    vectors = [describe(None, radiographs(n, seed)) for n, seed in ((12, 1), (6, 2), (60, 3))]
    assert vectors[0][PICTURE].shape[1] > 12
    reference = fit(*(cohort(one, 1000 * k) for k, one in enumerate(vectors)), rate=0.05)
    assert reference.spaces[PICTURE].whitener.shape[0] == 6
    assert flagged(None, reference, 1 - radiographs(20, 4)).all()


def test_equal_training_images_give_finite_values():
    vectors = [describe(None, radiographs(1, 1).repeat(n, 1, 1, 1)) for n in (12, 6, 30)]
    reference = fit(*(cohort(one, 1000 * k) for k, one in enumerate(vectors)), rate=0.1)
    assert flagged(None, reference, radiographs(3, 2)).all()


@pytest.mark.parametrize("place", [0, 1])
def test_fewer_patients_than_a_mean_or_a_spread_needs_are_refused(place):
    generator = np.random.default_rng(6)
    sizes = [30, 15, 40]
    sizes[place] = 4
    with pytest.raises(TypicalityError, match=r"^4 (training|tuning) patients; typicality needs at least"):
        fit(*(drawn(generator, n, 1000 * k) for k, n in enumerate(sizes)))


def test_a_patient_in_two_groups_is_refused_and_not_named():
    generator = np.random.default_rng(7)
    train, tune = _two(generator)
    with pytest.raises(TypicalityError, match=r"15 patients both in tuning and calibration") as caught:
        fit(train, tune, Cohort(tune.vectors, tune.patients))
    assert "patient-1000" not in str(caught.value)


@pytest.mark.parametrize("rate", [0, 1, -0.1, float("nan")])
def test_an_impossible_rate_is_refused(rate):
    generator = np.random.default_rng(7)
    with pytest.raises(ValueError, match="between 0 and 1"):
        fit(*_two(generator), drawn(generator, 40, 2000), rate=rate)


# ---------------------------------------------------------------- what must be seen


def test_ordinary_images_pass_and_strange_ones_are_flagged(fitted):
    model, reference = fitted
    ordinary = radiographs(150, 9)
    generator = torch.Generator().manual_seed(0)
    blank = torch.stack([torch.full((1, 32, 32), level) for level in (0.0, 0.25, 0.5, 0.75, 1.0)])
    assert flagged(model, reference, ordinary).sum() <= binom.ppf(0.999, 150, 0.05)
    assert flagged(model, reference, 1 - ordinary[:40]).all()
    assert flagged(model, reference, blank).all()
    assert flagged(model, reference, torch.rand((20, 1, 32, 32), generator=generator)).all()
    assert flagged(model, reference, ordinary[:40].rot90(1, (2, 3))).all()


def test_the_largest_statistic_is_named_in_words(fitted):
    model, reference = fitted
    rough = (radiographs(1, 11) + 0.05 * torch.randn((1, 1, 32, 32), generator=torch.Generator().manual_seed(0))).clip(
        0, 1
    )
    found = reference.of(describe(model, rough))
    assert found.largest.startswith(tuple(WORDS.values()))
    assert found.flagged
    assert reference.of(
        {**one(describe(model, radiographs(1, 11)), 0), DETAIL: describe(model, rough)[DETAIL]}
    ).largest == ("how fine or coarse the image's detail is")


def test_volumes():
    size = (8, 32, 32)
    model = network(size, (4, 8, 8))
    parts = [describe(model, radiographs(number, seed, size)) for number, seed in ((40, 1), (10, 2), (40, 3))]
    assert set(parts[0]) == {*DEPTHS, PICTURE, DETAIL}
    reference = fit(*(cohort(vectors, 1000 * place) for place, vectors in enumerate(parts)), rate=0.05)
    images = radiographs(20, 4, size)
    assert flagged(model, reference, images).mean() < 0.5
    assert flagged(model, reference, 1 - images).all()
    assert flagged(model, reference, torch.zeros((1, 1, *size))).all()


# ---------------------------------------------------------------- vectors


@pytest.mark.parametrize("size", [(32, 32), (8, 32, 32)])
def test_no_image_depends_on_the_others_or_their_order(size):
    model = network(size, (8, 8) if len(size) == 2 else (4, 8, 8), channels=2)
    images = torch.rand((9, 2, *size), generator=torch.Generator().manual_seed(1))
    images[4] = 0
    together, order = describe(model, images), torch.tensor([4, 8, 0, 2, 6, 1, 3, 7, 5])
    shuffled = describe(model, images[order])
    for row in range(9):
        alone = describe(model, images[row : row + 1])
        for name, vector in together.items():
            assert np.abs(alone[name][0] - vector[row]).max() <= 1e-5
            assert np.abs(shuffled[name][int((order == row).nonzero())] - vector[row]).max() <= 1e-5


def test_tokens_have_length_one_and_the_last_is_what_the_head_reads():
    model, images = network(), radiographs(4, 1)
    vectors = describe(model, images)
    for name in DEPTHS:
        assert vectors[name].dtype == np.float64
        assert np.allclose(np.linalg.norm(vectors[name], axis=1), 1)
    features = model.features(images).double().detach().numpy()
    assert np.allclose(vectors["full"], features / np.linalg.norm(features, axis=1, keepdims=True), atol=1e-6)


@pytest.mark.parametrize(
    ("depth", "names"),
    [(1, {"full"}), (2, {"half", "full"}), (3, {"quarter", "half", "full"}), (12, set(DEPTHS))],
)
def test_a_shallow_network_has_fewer_depths(depth, names):
    assert set(describe(network(depth=depth), radiographs(2, 1))) == {*names, PICTURE, DETAIL}


def test_the_picture_holds_a_small_grid_the_roots_of_its_grey_levels_and_its_detail():
    image = torch.zeros((1, 1, 32, 32))
    image[..., :16, :] = 0.5
    picture = describe(None, image)[PICTURE][0]
    grid, levels, detail = picture[:256].reshape(16, 16), picture[256:272], picture[272:]
    assert (grid[:8] == 0.5).all()
    assert (grid[8:] == 0).all()
    assert np.allclose(levels[[0, 8]] ** 2, 0.5)
    assert levels.sum() == pytest.approx(2 * np.sqrt(0.5))
    # Steps down the rows: half a range once in 31; none along the columns.
    assert detail[0] == pytest.approx(np.log(0.5 / 31 + 1e-3))
    assert detail[1] == pytest.approx(np.log(1e-3))


def test_the_order_of_images_and_patients_changes_nothing():
    generator = np.random.default_rng(8)
    groups = [drawn(generator, n, 1000 * k) for k, n in enumerate((60, 30, 99))]
    shuffled = []
    for group in groups:
        order = generator.permutation(len(group.patients))
        shuffled.append(Cohort({k: v[order] for k, v in group.vectors.items()}, group.patients[order]))
    assert np.allclose(fit(*groups).calibration, fit(*shuffled).calibration, atol=1.1e-3)


# ---------------------------------------------------------------- on disk


def test_what_is_saved_comes_back_bit_for_bit(fitted, tmp_path):
    model, reference = fitted
    reference.save(tmp_path / "typicality.npz")
    again = Reference.load(tmp_path / "typicality.npz")
    vectors = describe(model, torch.cat([radiographs(20, 12), 1 - radiographs(5, 13)]))
    assert [again.of(one(vectors, n)) for n in range(25)] == [reference.of(one(vectors, n)) for n in range(25)]
    assert (again.rate, again.statement) == (reference.rate, reference.statement)
    again.save(tmp_path / "twice.npz")
    assert (tmp_path / "twice.npz").read_bytes() == (tmp_path / "typicality.npz").read_bytes()


def test_no_row_of_a_patient_is_saved(fitted, tmp_path):
    model, reference = fitted
    reference.save(tmp_path / "typicality.npz")
    rows = [
        row
        for seed, n in ((1, 200), (2, 40), (3, 120))
        for v in describe(model, radiographs(n, seed)).values()
        for row in v
    ]
    with np.load(tmp_path / "typicality.npz") as file:
        saved = [row for name in file.files for row in np.atleast_2d(file[name]) if file[name].dtype.kind == "f"]
        assert not [name for name in file.files if file[name].dtype.kind not in "fiU"]
    lengths = {len(row) for row in rows}
    for kept in saved:
        if len(kept) in lengths:
            same = [row for row in rows if len(row) == len(kept)]
            assert np.abs(np.stack(same) - kept).max(axis=1).min() > 1e-9
    content = (tmp_path / "typicality.npz").read_bytes()
    assert b"patient" not in content
    assert b"pickle" not in content


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda a: a.update(schema=np.array(2)), "schema 2 instead of 1"),
        (lambda a: a.pop("schema"), "schema none instead of 1"),
        (lambda a: a.pop("picture.mean"), "picture.mean"),
        (lambda a: a.update(patients=np.zeros(3)), "patients"),
        (lambda a: a.update(names=np.array(["picture", "thumbnail"])), "unknown vectors"),
        (lambda a: a.update(calibration=a["calibration"][::-1]), "do not rise"),
        (lambda a: a.update(calibration=np.zeros(0)), "do not rise"),
        (lambda a: a.update(centre=a["centre"] * np.nan), "not finite"),
        (lambda a: a.update(centre=a["centre"][1:]), "sizes do not fit"),
        (lambda a: a.update({"picture.main": a["picture.main"][:, 1:]}), "sizes do not fit"),
        (lambda a: a.update(spread=0 * a["spread"]), "a rate or spread that is none"),
        (lambda a: a.update(rate=np.array(1.5)), "a rate or spread that is none"),
        (lambda a: a.update(rate=np.array([object()])), "without pickle"),
    ],
)
def test_another_file_is_refused_by_name(fitted, tmp_path, change, says):
    path = tmp_path / "typicality.npz"
    fitted[1].save(path)
    with np.load(path) as file:
        arrays = dict(file)
    change(arrays)
    np.savez(path, **arrays)
    with pytest.raises(TypicalityError, match=r"^typicality\.npz ") as caught:
        Reference.load(path)
    assert says in str(caught.value)
    assert str(tmp_path) not in str(caught.value)


def test_damaged_files_are_refused(fitted, tmp_path):
    path = tmp_path / "typicality.npz"
    fitted[1].save(path)
    content = path.read_bytes()
    for spoilt in (b"", content[:-200], b"no zip", content.replace(b"picture.mean", b"picture.meam", 1)):
        path.write_bytes(spoilt)
        with pytest.raises(TypicalityError):
            Reference.load(path)


def test_vectors_of_another_network_are_refused(fitted):
    _, reference = fitted
    with pytest.raises(TypicalityError, match="instead of"):
        reference.of(describe(network(depth=2), radiographs(1, 1)))
    other = describe(fitted[0], radiographs(1, 1))
    with pytest.raises(TypicalityError, match=r"vector picture has shape \(1, 3\)"):
        reference.of({**other, PICTURE: np.zeros((1, 3))})
    with pytest.raises(TypicalityError, match="vector detail holds values that are not finite"):
        reference.of({**other, DETAIL: other[DETAIL] * np.nan})
