import dataclasses
import time

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from retfound_hf.errors import RetFoundError
from retfound_hf.images.field_of_view import crop_field_of_view
from retfound_hf.images.synthetic import (
    CAMERA_TYPES,
    CFP_CLASSES,
    CLASSES,
    OCT_CLASSES,
    SyntheticImage,
    draw_patient,
    render,
)
from retfound_hf.images.synthetic_cfp import glaucomatous_cup
from retfound_hf.images.vessels import FOVEAL_AVASCULAR_RADIUS, grow_vessels

DISEASED = [(modality, condition) for modality in CLASSES for condition in CLASSES[modality][1:]]


def take(
    modality: str, condition: str, severity: float = 0.7, size: int = 160, patient: int = 0, photo: int = 0, **options
):
    eye = draw_patient(np.random.default_rng(patient), modality)[0]
    return render(eye, condition, severity, size, np.random.default_rng(photo), **options)


def test_the_classes():
    assert CFP_CLASSES == ("normal", "retinopathy", "glaucoma")
    assert OCT_CLASSES == ("normal", "amd", "dme")
    assert CLASSES == {"cfp": CFP_CLASSES, "oct": OCT_CLASSES}


@pytest.mark.parametrize("modality", CLASSES)
@pytest.mark.parametrize("size", [64, 99, 160])
def test_shapes_and_types(modality, size):
    for condition in CLASSES[modality]:
        made = take(modality, condition, 0.5, size)
        assert isinstance(made, SyntheticImage)
        assert made.image.dtype == np.uint8 and made.image.shape == (size, round(size * 4 / 3), 3)
        assert made.lesion_mask.dtype == bool and made.lesion_mask.shape == made.image.shape[:2]
        assert (made.condition, made.severity) == (condition, 0.5)
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
    sick = take(modality, condition, severity)
    well = take(modality, "normal", severity)
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
        assert right.disc[0] > 0 > left.disc[0]
        assert (right.pigment, right.hue, right.tortuosity, right.camera) == (
            left.pigment, left.hue, left.tortuosity, left.camera,
        )  # fmt: skip
        assert right.seed != left.seed
    cups = np.array([[right.cup_ratio, left.cup_ratio] for right, left in patients])
    assert np.corrcoef(cups.T)[0, 1] > 0.85


def test_photographs_of_one_patient_are_closer_in_colour_than_those_of_strangers():
    def colour(patient: int, photo: int) -> np.ndarray:
        image = take("cfp", "normal", patient=patient, photo=photo, size=64).image
        mean = image[20:44, 30:56].mean(axis=(0, 1))
        return mean / mean.sum()

    colours = np.array([[colour(patient, 10 * patient + photo) for photo in range(3)] for patient in range(15)])
    within = colours.std(axis=1).mean()
    assert within < 0.6 * colours.mean(axis=1).std(axis=0).mean()


def test_the_optic_disc_is_bright_and_where_the_eye_says():
    eye = dataclasses.replace(draw_patient(np.random.default_rng(1), "cfp")[0], camera=0.2)
    image = render(eye, "normal", 0, 240, np.random.default_rng(0)).image
    blue = ndimage.gaussian_filter(image[..., 2].astype(float), 6)
    y, x = np.unravel_index(blue.argmax(), blue.shape)
    radius = 0.46 * 240
    assert (x - 160) / radius == pytest.approx(eye.disc[0], abs=0.15)
    assert (y - 120) / radius == pytest.approx(eye.disc[1], abs=0.15)


def test_glaucoma_widens_the_cup_and_nothing_else():
    assert glaucomatous_cup(0.4, 0) == pytest.approx(0.4 + 0.25 * 0.55)
    assert glaucomatous_cup(0.4, 1) == pytest.approx(0.4 + 0.9 * 0.55)
    eye = draw_patient(np.random.default_rng(0), "cfp")[0]
    made = render(eye, "glaucoma", 1.0, 200, np.random.default_rng(0))
    y, x = np.nonzero(made.lesion_mask)
    assert np.hypot(x - x.mean(), y - y.mean()).max() < 1.3 * eye.disc_radius * 0.55 * 200


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


def test_most_of_an_advanced_lesion_is_wider_than_a_patch():
    """Of a field of 224 pixels, in patches of 16: what is left by an erosion of 6 pixels was at least 13 wide."""
    size = 250
    for condition, share in (("retinopathy", 0.02), ("glaucoma", 0.02)):
        masks = [take("cfp", condition, 0.5, size, photo=photo, stage="advanced").lesion_mask for photo in range(6)]
        joined = [ndimage.binary_closing(mask, iterations=5) for mask in masks]
        assert np.mean([ndimage.binary_erosion(mask, iterations=6).mean() for mask in joined]) > share


def test_lost_nerve_fibres_arch_from_the_disc_around_the_macula():
    for patient in range(4):
        eye = dataclasses.replace(draw_patient(np.random.default_rng(patient), "cfp")[patient % 2], camera=0.2)
        made = render(eye, "glaucoma", 1.0, 240, np.random.default_rng(patient), stage="advanced")
        y, x = np.nonzero(made.lesion_mask)
        x, y = (x - 160) / (0.46 * 240), (y - 120) / (0.46 * 240)
        away = np.hypot(x - eye.disc[0], y - eye.disc[1]) > 1.6 * eye.disc_radius
        assert away.mean() > 0.5
        side = np.sign(eye.disc[0])
        assert (side * x[away] < abs(eye.disc[0]) + 0.15).all(), "none on the nasal side of the disc"
        assert np.hypot(x[away], y[away]).min() > 0.1, "the macula keeps its fibres"


def test_grain_of_a_handheld_camera_grows_with_the_root_of_the_light():
    noise, light = [], []
    for photo in range(12):
        clinic, handheld = (take("cfp", "normal", photo=photo, camera=camera).image for camera in CAMERA_TYPES["cfp"])
        inside = ndimage.binary_erosion(clinic.mean(axis=2) > 40, iterations=3)
        difference = handheld.astype(float) - clinic
        bright = clinic.mean(axis=2)
        halves = [inside & (bright < np.median(bright[inside])), inside & (bright >= np.median(bright[inside]))]
        noise.append([difference[half].std() for half in halves])
        light.append([bright[half].mean() for half in halves])
    noise, light = np.array(noise), np.array(light)
    assert noise.min() > 4 and noise.max() < 40
    growth = np.log(noise[:, 1] / noise[:, 0]) / np.log(light[:, 1] / light[:, 0])
    assert np.median(growth) == pytest.approx(0.5, abs=0.15)


def test_vessels_start_at_the_disc_and_spare_the_fovea():
    for seed in range(5):
        disc = (0.62, -0.04) if seed % 2 else (-0.62, -0.04)
        tree = grow_vessels(seed, disc, 0.8)
        points = np.concatenate([vessel.points for vessel in tree])
        assert np.linalg.norm(points, axis=1).min() >= FOVEAL_AVASCULAR_RADIUS
        at_disc = np.array([np.linalg.norm(vessel.points[0] - disc) < 0.08 for vessel in tree])
        assert at_disc.sum() >= 8
        assert at_disc[np.argmax([vessel.widths[0] for vessel in tree])]
        assert {vessel.is_vein for vessel in tree} == {False, True}
        assert all((np.diff(vessel.widths) < 0).all() for vessel in tree)


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
        parts.append(
            np.percentile(ridge - np.polyval(np.polyfit(np.arange(112), ridge, 2), np.arange(112)), [2, 5, 15])
        )
    return colour, np.concatenate(parts)


def auroc(inputs: np.ndarray, labels: np.ndarray) -> float:
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.3, max_iter=500))
    scores = cross_val_predict(model, inputs, labels, cv=5, method="decision_function")
    return roc_auc_score(labels, scores)


@pytest.mark.parametrize("modality, condition", DISEASED)
def test_colour_alone_does_not_tell_the_disease_but_local_features_do(modality, condition):
    rng = np.random.default_rng(5)
    colours, details, labels = [], [], []
    for number in range(140):
        eye = draw_patient(rng, modality)[number // 2 % 2]
        name = condition if number % 2 else "normal"
        made = render(eye, name, float(rng.uniform()), 128, rng)
        colour, detail = features(made.image, modality)
        colours.append(colour)
        details.append(detail)
        labels.append(number % 2)
    by_colour, by_detail = auroc(np.array(colours), np.array(labels)), auroc(np.array(details), np.array(labels))
    print(f"{condition}: colour {by_colour:.3f}, local features {by_detail:.3f}")
    assert by_colour < 0.7
    assert 0.7 < by_detail < 0.995
    assert by_detail > by_colour + 0.12


def test_bad_requests_are_refused():
    rng = np.random.default_rng(0)
    eye = draw_patient(rng, "cfp")[0]
    with pytest.raises(RetFoundError, match="'amd' is unknown for cfp; choose one of normal, retinopathy, glaucoma"):
        render(eye, "amd", 0.5, 128, rng)
    with pytest.raises(RetFoundError, match=r"severity 1\.5 is out of range; give a number from 0 to 1"):
        render(eye, "glaucoma", 1.5, 128, rng)
    with pytest.raises(RetFoundError, match=r"image_size 32 is too small .* at least 64"):
        render(eye, "glaucoma", 0.5, 32, rng)
    with pytest.raises(RetFoundError, match="stage 'late' is not known for cfp; choose early or advanced"):
        render(eye, "glaucoma", 0.5, 128, rng, stage="late")
    scan = draw_patient(rng, "oct")[0]
    with pytest.raises(RetFoundError, match="camera 'handheld' is not known for oct; choose clinic"):
        render(scan, "amd", 0.5, 128, rng, camera="handheld")
    with pytest.raises(RetFoundError, match="modality 'mri' is unknown; choose cfp or oct"):
        draw_patient(rng, "mri")


@pytest.mark.parametrize("modality", CLASSES)
def test_rendering_is_quick(modality):
    rng = np.random.default_rng(0)
    eye = draw_patient(rng, modality)[0]
    seconds = []
    for _ in range(5):
        start = time.process_time()
        render(eye, CLASSES[modality][1], 0.5, 256, rng)
        seconds.append(time.process_time() - start)
    assert min(seconds) < 0.1
