import math

from latentforge.trainer.run.curve import BoundedCurve


def steps_after(count: int, limit: int) -> list[float]:
    curve = BoundedCurve(limit)
    for step in range(count):
        curve.add(step, {"ce": 1.0})
        assert len(curve.points) <= limit + 1
        assert curve.points[-1]["step"] == step
    return [point["step"] for point in curve.points]


def test_every_point_is_kept_while_there_is_room() -> None:
    assert steps_after(0, 4) == []
    assert steps_after(4, 4) == [0, 1, 2, 3]


def test_beyond_it_points_are_evenly_spread_and_the_newest_is_there() -> None:
    assert steps_after(5, 4) == [0, 2, 4]
    assert steps_after(6, 4) == [0, 2, 4, 5]
    assert steps_after(9, 4) == [0, 4, 8]
    assert steps_after(1000, 4) == [0, 256, 512, 768, 999]


def test_points_are_not_changed_by_later_ones() -> None:
    curve = BoundedCurve(4)
    curve.add(0, {"ce": 2.0})
    before = curve.points
    curve.add(1, {"ce": 1.0})
    assert before == [{"step": 0, "ce": 2.0}]


def test_figures_that_are_not_finite_are_left_out() -> None:
    curve = BoundedCurve()
    curve.add(3, {"ce": math.nan, "kd": math.inf, "mse": 1})
    assert curve.points == [{"step": 3, "mse": 1.0}]
