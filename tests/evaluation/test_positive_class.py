import pytest

from retfound_hf.evaluation.thresholds import positive_class


@pytest.mark.parametrize(
    ("names", "positive"),
    [
        (("normal", "retinopathy"), 1),
        (("glaucoma", "normal"), 0),
        (("AMD", "Healthy"), 0),
        (("amd", "healthy eyes"), 0),
        (("DR", "no_dr"), 0),
        (("DR", "NoDR"), 0),
        (("Referable", "non-referable"), 0),
        (("exudative", "nonexudative"), 0),
        (("disease", "none"), 0),
        (("1_stroke", "2_control"), 0),
        (("a_glaucoma", "b_normal"), 0),
        (("a_normal", "b_glaucoma"), 1),
        (("healthy", "normal tension glaucoma"), 1),
        (("glaucoma", "normal tension glaucoma"), 1),
        (("neovascular", "nodular"), 1),
        (("control", "normal"), 1),
        (("0", "1"), 1),
        (("left", "right"), 1),
    ],
)
def test_the_class_that_is_not_named_for_health(names, positive):
    assert positive_class(names) == positive
