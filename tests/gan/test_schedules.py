"""Schedules against their formulas."""

from __future__ import annotations

import pytest

from pipeline.gan.schedules import cosine, ema_decay, growth, linear_fall


@pytest.mark.parametrize(("seen", "factor"), [(0, 1.0), (500, 1.0), (750, 0.5), (900, 0.2), (1000, 0.0), (1063, 0.0)])
def test_the_fall_is_flat_then_straight_to_zero(seen: int, factor: float) -> None:
    assert linear_fall(seen, 1000, start=0.5) == pytest.approx(factor)


@pytest.mark.parametrize(("seen", "value"), [(0, 4.0), (100, 3.5), (150, 3.0), (300, 2.0), (301, 2.0), (1000, 2.0)])
def test_the_cosine_leaves_and_arrives_flat(seen: int, value: float) -> None:
    assert cosine(seen, 1000, begin=4.0, end=2.0, until=0.3) == pytest.approx(value)


@pytest.mark.parametrize(
    ("seen", "level"), [(0, 0), (100, 0), (150, 0.5), (200, 1), (300, 1), (375, 1.75), (400, 2), (401, 2), (1000, 2)]
)
def test_growth_stays_at_a_level_as_long_as_it_fades_to_the_next(seen: int, level: float) -> None:
    assert growth(seen, 1000, last=2, until=0.4) == pytest.approx(level)


def test_after_one_halflife_half_of_the_old_average_is_left() -> None:
    weight = 1.0
    for step in range(100):
        weight *= ema_decay(1_000_000 + step * 64, 64, halflife_images=6400, ramp=0.05)
    assert weight == pytest.approx(0.5)


def test_a_young_run_has_a_halflife_in_proportion_to_its_age() -> None:
    assert ema_decay(1000, 50, halflife_images=6400, ramp=0.05) == pytest.approx(0.5)
    assert ema_decay(0, 50, halflife_images=6400, ramp=0.05) == 0.0


def test_no_halflife_means_no_average() -> None:
    assert ema_decay(1000, 50, halflife_images=0, ramp=0.05) == 0.0
