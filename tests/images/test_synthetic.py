import dataclasses

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from retfound_hf.errors import BadArgumentError
from retfound_hf.images.field_of_view import crop_field_of_view
from retfound_hf.images.synthetic import CAMERA_TYPES, CFP_CLASSES, CLASSES, OCT_CLASSES, draw_patient, render

DISEASED = [(modality, condition) for modality in CLASSES for condition in CLASSES[modality][1:]]


def take(
    modality: str, condition: str, severity: float = 0.7, size: int = 160, patient: int = 0, photo: int = 0, **options
):
    eye = draw_patient(np.random.default_rng(patient), modality)[0]
    return render(eye, condition, severity, size, np.random.default_rng(photo), **options)


@pytest.mark.parametrize("modality", CLASSES)
@pytest.mark.parametrize("size", [64, 99, 160])
def test_shapes_and_types(modality, size):
    for condition in CLASSES[modality]:
        made = take(modality, condition, 0.5, size)
        assert made.image.dtype == np.uint8 and made.image.shape == (size, round(size * 4 / 3), 3)
        assert made.lesion_mask.dtype == bool and made.lesion_mask.shape == made.image.shape[:2]
        assert made.lesion_mask.any() == (condition != "normal")


@pytest.mark.parametrize("modality", CLASSES)
def test_one_seed_gives_one_image_and_another_gives_another(modality):
    condition = CLASSES[modality][1]
    first, again, other = (take(modality, condition, photo=photo) for photo in (1, 1, 2))
    assert np.array_equal(first.image, again.image) and np.array_equal(first.lesion_mask, again.lesion_mask)
    assert not np.array_equal(first.image, other.image)
    assert draw_patient(np.random.default_rng(3), modality) == draw_patient(np.random.default_rng(3), modality)


@pytest.mark.parametrize("modality, condition", DISEASED)
@pytest.mark.parametrize("severity", [0.0, 0.5, 1.0])
def test_the_disease_changes_the_pixels_of_its_mask_and_no_others(modality, condition, severity):
    sick, well = take(modality, condition, severity), take(modality, "normal", severity)
    changed = (sick.image != well.image).any(axis=2)
    assert not changed[~sick.lesion_mask].any()
    # A changed pixel can round to the same value, or be saturated in both.
    assert changed[sick.lesion_mask].mean() > 0.75
    assert 0 < sick.lesion_mask.mean() < (0.5 if condition == "dme" else 0.2)


@pytest.mark.parametrize("modality, condition", DISEASED)
def test_severe_disease_changes_more_than_mild(modality, condition):
    mild, severe = (
        np.mean([take(modality, condition, severity, photo=photo).lesion_mask.mean() for photo in range(8)])
        for severity in (0.0, 1.0)
    )
    assert severe > 2 * mild > 0


def test_the_two_eyes_of_a_patient_are_mirrored_and_alike():
    rng = np.random.default_rng(0)
    patients = [draw_patient(rng, "cfp") for _ in range(200)]
    for right, left in patients:
        assert (right.laterality, left.laterality) == ("R", "L")
        assert right.disc[0] > 0 > left.disc[0] and right.seed != left.seed
        for name in ("pigment", "hue", "tortuosity", "camera"):
            assert getattr(right, name) == getattr(left, name)
    cups = np.array([[right.cup_ratio, left.cup_ratio] for right, left in patients])
    assert np.corrcoef(cups.T)[0, 1] > 0.85


def test_photographs_of_one_patient_are_closer_in_colour_than_those_of_strangers():
    def colour(patient: int, photo: int) -> np.ndarray:
        image = take("cfp", "normal", patient=patient, photo=photo, size=64).image
        mean = image[20:44, 30:56].mean(axis=(0, 1))
        return mean / mean.sum()

    colours = np.array([[colour(patient, 10 * patient + photo) for photo in range(3)] for patient in range(15)])
    assert colours.std(axis=1).mean() < 0.6 * colours.mean(axis=1).std(axis=0).mean()


def centred(patient: int, **options):
    """A clinic photograph 240 pixels high of an eye whose whole field is on the sensor."""
    eye = dataclasses.replace(draw_patient(np.random.default_rng(patient), "cfp")[patient % 2], camera=0.2)
    return eye, render(eye, image_size=240, rng=np.random.default_rng(patient), **options)


def test_the_optic_disc_is_bright_and_where_the_eye_says():
    eye, made = centred(1, condition="normal", severity=0)
    blue = ndimage.gaussian_filter(made.image[..., 2].astype(float), 6)
    y, x = np.unravel_index(blue.argmax(), blue.shape)
    assert ((x - 160) / (0.46 * 240), (y - 120) / (0.46 * 240)) == pytest.approx(eye.disc, abs=0.15)


def test_glaucoma_widens_the_cup_and_nothing_else():
    eye, made = centred(0, condition="glaucoma", severity=1.0)
    y, x = np.nonzero(made.lesion_mask)
    assert np.hypot(x - x.mean(), y - y.mean()).max() < 1.3 * eye.disc_radius * 0.46 * 240


@pytest.mark.parametrize("camera", CAMERA_TYPES["cfp"])
@pytest.mark.parametrize("condition", CFP_CLASSES[1:])
@pytest.mark.parametrize("severity", [0.0, 1.0])
def test_advanced_disease_covers_more_and_nothing_outside_its_mask(condition, severity, camera):
    early, late, well = (
        take("cfp", name, severity, stage=stage, camera=camera)
        for name, stage in ((condition, "early"), (condition, "advanced"), ("normal", "advanced"))
    )
    assert not (late.image != well.image).any(axis=2)[~late.lesion_mask].any()
    assert late.lesion_mask.sum() > 1.5 * early.lesion_mask.sum()
    assert np.array_equal(well.image, take("cfp", "normal", severity, camera=camera).image)


@pytest.mark.parametrize("condition", CFP_CLASSES[1:])
def test_most_of_an_advanced_lesion_is_wider_than_a_patch(condition):
    """Of a field of 224 pixels, in patches of 16: what is left by an erosion of 6 pixels was at least 13 wide."""
    masks = [take("cfp", condition, 0.5, 250, photo=photo, stage="advanced").lesion_mask for photo in range(6)]
    joined = [ndimage.binary_closing(mask, iterations=5) for mask in masks]
    assert np.mean([ndimage.binary_erosion(mask, iterations=6).mean() for mask in joined]) > 0.02


@pytest.mark.parametrize("patient", range(4))
def test_lost_nerve_fibres_arch_from_the_disc_around_the_macula(patient):
    eye, made = centred(patient, condition="glaucoma", severity=1.0, stage="advanced")
    y, x = np.nonzero(made.lesion_mask)
    x, y = (x - 160) / (0.46 * 240), (y - 120) / (0.46 * 240)
    away = np.hypot(x - eye.disc[0], y - eye.disc[1]) > 1.6 * eye.disc_radius
    assert away.mean() > 0.5
    assert (np.sign(eye.disc[0]) * x[away] < abs(eye.disc[0]) + 0.15).all(), "none on the nasal side of the disc"
    assert np.hypot(x[away], y[away]).min() > 0.1, "the macula keeps its fibres"


def test_grain_of_a_handheld_camera_grows_with_the_root_of_the_light():
    growth = []
    for photo in range(12):
        clinic, handheld = (take("cfp", "normal", photo=photo, camera=camera).image for camera in CAMERA_TYPES["cfp"])
        light, noise = clinic.mean(axis=2), handheld.astype(float) - clinic
        inside = ndimage.binary_erosion(light > 40, iterations=3)
        bright = light >= np.median(light[inside])
        (dark_noise, dark), (bright_noise, lit) = (
            (noise[half].std(), light[half].mean()) for half in (inside & ~bright, inside & bright)
        )
        assert 4 < dark_noise < bright_noise < 40
        growth.append(np.log(bright_noise / dark_noise) / np.log(lit / dark))
    assert np.median(growth) == pytest.approx(0.5, abs=0.15)


def test_oct_swelling_raises_the_surface_and_drusen_do_not():
    def surface(condition: str) -> np.ndarray:
        image = ndimage.gaussian_filter(take("oct", condition, 1.0, patient=2).image[..., 0].astype(float), 2)
        return (image > 0.5 * image.max()).argmax(axis=0)[60:150]

    normal, amd, dme = (surface(condition) for condition in OCT_CLASSES)
    assert np.median(normal - dme) >= 4
    assert np.median(np.abs(normal - amd)) <= 1


def features(image: np.ndarray, modality: str) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation of the colours; percentiles of local contrasts and the roughness of the brightest layer."""
    picture = crop_field_of_view(Image.fromarray(image)).resize((112, 112), Image.Resampling.BICUBIC)
    pixels = np.asarray(picture).astype(np.float32)
    colour = np.concatenate([pixels.mean(axis=(0, 1)), pixels.std(axis=(0, 1))])
    inner = np.hypot(*(np.mgrid[:112, :112] - 55.5)) < 48
    green, blue = pixels[..., 1], pixels[..., 2]
    contrasts = (
        green - ndimage.uniform_filter(green, 9),
        ndimage.gaussian_filter(green, 2) - ndimage.gaussian_filter(green, 8),
        blue - ndimage.gaussian_filter(blue, 6),
    )
    parts = [np.percentile(contrast[inner], [0.5, 1, 5, 95, 99, 99.5, 99.9]) for contrast in contrasts]
    if modality == "oct":
        line = ndimage.gaussian_filter(green, (1, 1)) - ndimage.gaussian_filter(green, (5, 1))
        ridge = ndimage.median_filter(line.argmax(axis=0).astype(float), 5)
        bend = np.polyval(np.polyfit(np.arange(112), ridge, 2), np.arange(112))
        parts.append(np.percentile(ridge - bend, [2, 5, 15]))
    return colour, np.concatenate(parts)


def auroc(inputs: list[np.ndarray], labels: np.ndarray) -> float:
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.3, max_iter=500))
    scores = cross_val_predict(model, np.array(inputs), labels, cv=5, method="decision_function")
    return roc_auc_score(labels, scores)


@pytest.mark.parametrize("modality, condition", DISEASED)
def test_colour_alone_does_not_tell_the_disease_but_local_features_do(modality, condition):
    rng, labels = np.random.default_rng(5), np.arange(140) % 2
    found = []
    for number, label in enumerate(labels):
        eye = draw_patient(rng, modality)[number // 2 % 2]
        made = render(eye, condition if label else "normal", float(rng.uniform()), 128, rng)
        found.append(features(made.image, modality))
    by_colour, by_detail = (auroc(list(inputs), labels) for inputs in zip(*found, strict=True))
    assert by_colour < 0.7 < by_detail < 0.995, (by_colour, by_detail)
    assert by_detail > by_colour + 0.12


@pytest.mark.parametrize(
    "modality, field, options",
    [
        ("cfp", "condition", {"condition": "amd"}),
        ("cfp", "severity", {"severity": 1.5}),
        ("cfp", "image_size", {"image_size": 32}),
        ("cfp", "stage", {"stage": "late"}),
        ("oct", "camera", {"condition": "amd", "camera": "handheld"}),
        ("mri", "modality", {}),
    ],
)
def test_bad_requests_are_refused(modality, field, options):
    rng = np.random.default_rng(0)
    with pytest.raises(BadArgumentError) as error:
        eye = draw_patient(rng, modality)[0]
        render(eye, **({"condition": "glaucoma", "severity": 0.5, "image_size": 128, "rng": rng} | options))
    assert error.value.field == field and error.value.value == options.get(field, modality)
