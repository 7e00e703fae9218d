import matplotlib
import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import average_precision_score

from retfound_hf.evaluation.plots import COLUMN, PAGE, STYLE, _step, figure, short, shown_classes, write_plots
from retfound_hf.evaluation.predictions import Predictions
from retfound_hf.vocabulary import MULTI_LABEL, REGRESSION, SINGLE_LABEL

FILES = ["roc.png", "precision_recall.png", "confusion_matrix.png", "reliability.png", "decision_curve.png"]
LONG = "a class with a name that is much longer than any axis has room for"
# Those of drawing; not ResourceWarning, which comes from whatever object happens to be collected meanwhile.
no_warnings = pytest.mark.filterwarnings("error::UserWarning", "error::RuntimeWarning", "error::DeprecationWarning")


@pytest.fixture(autouse=True)
def _full_resolution(monkeypatch):
    monkeypatch.setitem(STYLE, "savefig.dpi", 300)


def draw(labels, scores, names, problem_type, folder):
    return write_plots(folder, Predictions(None, scores, labels, names, problem_type))


def widths(paths):
    """Inches; also checks that something is drawn: ink neither absent nor everywhere."""
    found = []
    for path in paths:
        with Image.open(path) as image:
            assert image.info["dpi"] == pytest.approx((300, 300), abs=0.1)
            ink = (np.asarray(image.convert("L")) < 200).mean()
            found.append(image.width / 300)
        assert 0.005 < ink < 0.6, path
    return found


@pytest.mark.parametrize("classes", [2, 5])
def test_column_wide_figures(single_label, tmp_path, classes):
    labels, scores = single_label(120, classes)
    names = ["$x_1$ of % and _", LONG, "mild", "moderate", "no"][:classes]
    paths = draw(labels, scores, names, SINGLE_LABEL, tmp_path / "plots")
    assert [path.name for path in paths] == FILES
    assert sorted(path.name for path in (tmp_path / "plots").iterdir()) == sorted(FILES)  # no part of a file is left
    assert widths(paths) == pytest.approx([COLUMN] * 5, abs=0.01)


@no_warnings
def test_39_classes_some_absent(single_label, tmp_path):
    labels, scores = single_label(400, 39)
    labels[labels == 7] = 0
    names = [f"{index}. {LONG}" for index in range(39)]
    paths = draw(labels, scores, names, SINGLE_LABEL, tmp_path)
    assert widths(paths) == pytest.approx([COLUMN, COLUMN, PAGE, COLUMN, COLUMN], abs=0.01)


@no_warnings
def test_one_class_present_is_a_note_not_a_crash(single_label, tmp_path):
    _, scores = single_label(20, 2)
    paths = draw(np.ones(20, int), scores, ["a", "b"], SINGLE_LABEL, tmp_path)
    assert all(path.stat().st_size > 5000 for path in paths)


@no_warnings
def test_multi_label(multi_label, tmp_path):
    labels, scores = multi_label(60, 3)
    labels[:, 2] = 0
    assert len(draw(labels, scores, list("abc"), MULTI_LABEL, tmp_path)) == 5
    assert len(draw(labels[:, :1], scores[:, :1], ["a"], MULTI_LABEL, tmp_path)) == 5


@no_warnings
def test_regression(tmp_path):
    rng = np.random.default_rng(0)
    labels = rng.normal(60, 10, size=(100, 2))
    (path,) = draw(labels, labels + 5, ["age", "bmi"], REGRESSION, tmp_path)
    assert path.name == "predicted_vs_true.png" and widths([path]) == pytest.approx([PAGE], abs=0.01)
    assert draw([3.0], [4.0], ["age"], REGRESSION, tmp_path) == [path]


def test_process_settings_stay_as_they_were(single_label, tmp_path):
    settings, backend = matplotlib.rcParams.copy(), matplotlib.rcParams._get_backend_or_none()
    labels, scores = single_label(30, 3)
    draw(labels, scores, list("abc"), SINGLE_LABEL, tmp_path)
    assert matplotlib.rcParams == settings and matplotlib.rcParams._get_backend_or_none() == backend


def test_a_figure_that_fails_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError), figure(tmp_path / "x.png", 2, 2):
        raise RuntimeError("stop")
    assert not list(tmp_path.iterdir())


def test_the_drawn_steps_enclose_the_average_precision():
    """The area under the steps, on a fine grid, is the number in the legend."""
    from sklearn.metrics import precision_recall_curve

    rng = np.random.default_rng(0)
    truth, scores = rng.random(40) < 0.4, rng.random(40)
    precision, recall, _ = precision_recall_curve(truth, scores)
    grid = (np.arange(20000) + 0.5) / 20000
    area = _step(grid, recall[::-1], precision[::-1]).mean()
    assert area == pytest.approx(average_precision_score(truth, scores), abs=1e-3)


def test_long_names_keep_both_ends():
    name = short(LONG, 30)
    assert len(name) <= 30 and name.startswith("a class with") and name.endswith("room for")
    assert short("mild", 30) == "mild"


def test_of_two_classes_the_one_that_is_not_health_is_drawn(single_label):
    labels, scores = single_label(50, 2)
    assert shown_classes(Predictions(None, scores, labels, ["glaucoma", "normal"], SINGLE_LABEL)) == [0]
    both = Predictions(None, scores, np.eye(2)[labels], ["glaucoma", "normal"], MULTI_LABEL)
    assert shown_classes(both) == [0, 1]
