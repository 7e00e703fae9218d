import numpy as np
import pytest

from retfound_hf.images.field_of_view import fit_circle


def arc(start: float, stop: float, count: int = 200) -> tuple[np.ndarray, np.ndarray]:
    angle = np.linspace(start, stop, count)
    return 30 + 50 * np.cos(angle), -20 + 50 * np.sin(angle)


@pytest.mark.parametrize("stop", [6.2, 3.0, 1.5])
def test_exact_points_give_the_exact_circle(stop):
    circle = fit_circle(*arc(0, stop))
    assert (circle.x, circle.y, circle.radius) == pytest.approx((30, -20, 50), abs=1e-6)
    assert circle.inliers == 1


def test_a_fifth_of_strangers_does_not_move_it():
    rng = np.random.default_rng(0)
    x, y = arc(0, 6.2)
    x[:40] = rng.uniform(60, 75, 40)
    y[:40] = rng.uniform(-80, -40, 40)
    circle = fit_circle(x + rng.normal(0, 0.2, 200), y + rng.normal(0, 0.2, 200))
    assert (circle.x, circle.y, circle.radius) == pytest.approx((30, -20, 50), abs=0.3)
    assert 0.75 < circle.inliers < 0.9


def test_lines_and_handfuls_give_none():
    line = np.arange(50.0)
    assert fit_circle(line, 2 * line) is None
    assert fit_circle(*arc(0, 6, 8)) is None
    assert fit_circle(np.array([]), np.array([])) is None
