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
from retfound_hf.images.synthetic import CAMERA_TYPES, CFP_CLASSES, CLASSES, draw_patient, render

DISEASED = [(modality, condition) for modality in CLASSES for condition in CLASSES[modality][1:]]


def take(
    modality: str, condition: str, severity: float = 0.7, size: int = 160, patient: int = 0, photo: int = 0, **options
):
    eye = draw_patient(np.random.default_rng(patient), modality)[0]
    return render(eye, condition, severity, size, np.random.default_rng(photo), **options)


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
    assert sick.image.dtype == np.uint8 and sick.image.shape == (160, 213, 3)
    assert sick.lesion_mask.dtype == bool and not well.lesion_mask.any()
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


@pytest.mark.parametrize(
    "modality, condition",
    [pytest.param(*each, marks=pytest.mark.slow if index % 2 else ()) for index, each in enumerate(DISEASED)],
)
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
    [("cfp", "condition", {"condition": "amd"}), ("cfp", "severity", {"severity": 1.5}),
     ("cfp", "image_size", {"image_size": 32}), ("cfp", "stage", {"stage": "late"}),
     ("oct", "camera", {"condition": "amd", "camera": "handheld"}), ("mri", "modality", {})],
)  # fmt: skip
def test_bad_requests_are_refused(modality, field, options):
    rng = np.random.default_rng(0)
    with pytest.raises(BadArgumentError) as error:
        eye = draw_patient(rng, modality)[0]
        render(eye, **({"condition": "glaucoma", "severity": 0.5, "image_size": 128, "rng": rng} | options))
    assert error.value.field == field and error.value.value == options.get(field, modality)
