"""Intervals against published tables, SciPy, and simulations whose truth is known."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from conftest import tally
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from fedsem.evaluation.point import Point, Tally, load_points, save_points
from fedsem.evaluation.statistics import Bootstrap, Measured, wilson
from fedsem.evaluation.tabulate import rows

PROPERTY = settings(deadline=None, derandomize=True, max_examples=100)


def measured(values: np.ndarray, draws: int = 1, single: bool = False) -> Measured:
    """Sums over draws for (seeds, images)."""
    values = np.atleast_2d(values).astype(float)
    return Measured(values, np.full_like(values, float(draws)), single)


# -------------------------------------------------------------------------------------------------------------- Wilson


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [
        # Newcombe, Two-sided confidence intervals for the single proportion, Stat. Med. 17 (1998), table I, method 3.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        # Brown, Cai, DasGupta (2001) and every textbook's example.
        (0, 10, 0.0, 0.2775),
        (5, 10, 0.2366, 0.7634),
        (10, 10, 0.7225, 1.0),
    ],
)
def test_wilson_against_published_values(successes: int, trials: int, low: float, high: float) -> None:
    assert wilson(successes, trials) == pytest.approx((low, high), abs=6e-5)


@PROPERTY
@given(st.integers(1, 100_000), st.floats(0, 1))
def test_wilson_against_scipy(trials: int, share: float) -> None:
    successes = round(share * trials)
    theirs = binomtest(successes, trials).proportion_ci(0.95, method="wilson")
    assert wilson(successes, trials) == pytest.approx((theirs.low, theirs.high), abs=1e-9)


def test_one_draw_of_one_model_gets_wilson() -> None:
    hits = np.zeros(359)
    hits[:352] = 1
    theirs = binomtest(352, 359).proportion_ci(0.95, method="wilson")
    found = Bootstrap(359, 1).interval(measured(hits, single=True))
    assert found == pytest.approx((theirs.low, theirs.high), abs=1e-9)
    # shared/facts.md: plus or minus 1.4 points at 0.98 with 359 images.
    assert (found[1] - found[0]) / 2 == pytest.approx(0.014, abs=0.002)


# ----------------------------------------------------------------------------------------------------------- bootstrap


def clustered(rng: np.random.Generator, images: int, draws: int, spread: float) -> np.ndarray:
    """Hits of each image in `draws` receptions: its own success probability is Beta with mean 0.8."""
    p = rng.beta(0.8 / spread, 0.2 / spread, images)
    return rng.binomial(draws, p)


@pytest.mark.parametrize(("spread", "draws"), [(2.0, 8), (0.2, 8), (0.5, 1)])
def test_the_interval_covers_the_truth_in_95_of_100_simulations(spread: float, draws: int) -> None:
    rng, images, n = np.random.default_rng(0), 200, 400
    bootstrap = Bootstrap(images, 1)
    covered = 0
    for _ in range(n):
        low, high = bootstrap.interval(measured(clustered(rng, images, draws, spread), draws))
        covered += low <= 0.8 <= high
    # Binomial standard error of 400 simulations: 1.1 points; a percentile interval of 200 images loses about one.
    assert 0.91 <= covered / n <= 0.98


def test_the_interval_is_wider_than_naive_where_draws_share_an_image() -> None:
    """Treating 8 draws of an image as 8 trials covers far too rarely: that is what clustering is for."""
    rng, images, draws, n = np.random.default_rng(1), 200, 8, 300
    bootstrap = Bootstrap(images, 1)
    naive_covered, ratios = 0, []
    for _ in range(n):
        hits = clustered(rng, images, draws, 2.0)
        low, high = bootstrap.interval(measured(hits, draws))
        naive = wilson(float(hits.sum()), float(images * draws))
        naive_covered += naive[0] <= 0.8 <= naive[1]
        ratios.append((high - low) / (naive[1] - naive[0]))
    assert naive_covered / n < 0.75
    # Intraclass correlation of Beta: 1 / (1 + a + b) = 2/3; design effect 1 + 7 * 2/3, its root 2.38.
    assert np.mean(ratios) == pytest.approx(math.sqrt(1 + 7 * 2 / 3), rel=0.06)


def test_independent_draws_need_no_widening() -> None:
    """The same machinery, without any cluster in the data, gives the naive width."""
    rng, images, draws = np.random.default_rng(2), 400, 8
    bootstrap = Bootstrap(images, 1)
    ratios = []
    for _ in range(50):
        hits = rng.binomial(draws, 0.8, images)
        low, high = bootstrap.interval(measured(hits, draws))
        naive = wilson(float(hits.sum()), float(images * draws))
        ratios.append((high - low) / (naive[1] - naive[0]))
    assert np.mean(ratios) == pytest.approx(1, abs=0.06)


def test_the_mean_of_a_metric_that_is_no_share() -> None:
    """PSNR: coverage of the mean of a skewed variable, and the width of the central limit theorem."""
    rng, images, n, draws = np.random.default_rng(3), 200, 300, 4
    bootstrap = Bootstrap(images, 1)
    covered, ratios = 0, []
    for _ in range(n):
        sums = draws * (15 + rng.gamma(4.0, 1.0, images))
        low, high = bootstrap.interval(measured(sums, draws))
        covered += low <= 19.0 <= high
        ratios.append((high - low) / (2 * 1.96 * (sums / draws).std(ddof=1) / math.sqrt(images)))
    assert 0.91 <= covered / n <= 0.98
    assert np.mean(ratios) == pytest.approx(1, abs=0.05)


def test_seeds_are_resampled_too() -> None:
    """With an effect of each seed, ten seeds on the same images: an interval from images alone covers too rarely."""
    rng, images, seeds, n = np.random.default_rng(4), 100, 10, 300
    both, pooled = Bootstrap(images, seeds), Bootstrap(images, 1)
    covered = naive = 0
    for _ in range(n):
        values = 0.7 + 0.05 * rng.normal(size=(seeds, 1)) + 0.1 * rng.normal(size=(1, images))
        values = values + 0.1 * rng.normal(size=(seeds, images))
        low, high = both.interval(measured(values * 100))
        covered += low <= 70 <= high
        low, high = pooled.interval(measured(values.mean(0) * 100))
        naive += low <= 70 <= high
    assert covered / n >= 0.91
    assert naive / n < 0.85


def test_a_paired_difference_is_narrower_than_an_unpaired_one() -> None:
    """Images that are hard for one are hard for the other: sharing replicates takes that out."""
    rng, images, n = np.random.default_rng(5), 300, 200
    bootstrap = Bootstrap(images, 1)
    covered, ratios = 0, []
    for _ in range(n):
        ease = rng.normal(size=images)
        one = measured(ease + 0.2 + 0.3 * rng.normal(size=images))
        other = measured(ease + 0.3 * rng.normal(size=images))
        low, high = bootstrap.difference(one, other)
        covered += low <= 0.2 <= high
        widths = [b - a for a, b in (bootstrap.interval(one), bootstrap.interval(other))]
        ratios.append((high - low) / math.hypot(*widths))
    assert 0.90 <= covered / n <= 0.985
    # Variances 2 * 0.09 and 2 * 1.09.
    assert np.mean(ratios) == pytest.approx(math.sqrt(0.09 / 1.09), rel=0.08)


def test_the_difference_of_equals_is_exactly_zero() -> None:
    one = measured(np.random.default_rng(0).random((3, 50)) * 8, 8)
    assert Bootstrap(50, 3).difference(one, one) == (0.0, 0.0)


def test_ratios_of_sums_weigh_images_by_what_counted() -> None:
    """Misses: images with many targets count more. 3 of 4 and 0 of 1 are 3 of 5, not the mean of 0.75 and 0."""
    one = Measured(np.array([[3.0, 0.0]]), np.array([[4.0, 1.0]]), single=False)
    assert one.value == 0.6
    replicates = Bootstrap(2, 1).replicates(one)
    # Two images drawn twice: 3/5, twice the first 6/8, twice the second 0/2.
    assert {round(float(value), 6) for value in replicates} == {0.6, 0.75, 0.0}


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_shares_of_nothing_and_all_get_wilson_over_images(value: float) -> None:
    """A bootstrap would say [1, 1]. One trial per image: not per draw, which would be far too sure."""
    images, draws = 359, 32
    one = measured(np.full((1, images), value * draws), draws)
    low, high = Bootstrap(images, 1).interval(one)
    theirs = binomtest(round(value * images), images).proportion_ci(0.95, method="wilson")
    assert (low, high) == pytest.approx((theirs.low, theirs.high), abs=1e-9)
    several = measured(np.full((3, images), value * draws), draws)
    assert Bootstrap(images, 3).interval(several) == pytest.approx((theirs.low, theirs.high), abs=1e-9)


@pytest.mark.parametrize("seeds", [1, 3])
def test_images_that_do_not_count_are_no_trials(seeds: int) -> None:
    """No miss among the ten images that had a target says far less than none among a hundred."""
    denominator = np.zeros((seeds, 100))
    denominator[:, :10] = 4
    one = Measured(np.zeros((seeds, 100)), denominator, single=False)
    theirs = binomtest(0, 10).proportion_ci(0.95, method="wilson")
    assert Bootstrap(100, seeds).interval(one) == pytest.approx((theirs.low, theirs.high), abs=1e-9)
    assert one.n == 10 * seeds


def test_an_interval_holds_its_value() -> None:
    rng = np.random.default_rng(6)
    for seeds in (1, 3):
        one = measured(rng.integers(0, 9, (seeds, 100)), 8)
        low, high = Bootstrap(100, seeds).interval(one)
        assert low < one.value < high


def test_replicates_are_the_same_in_every_process() -> None:
    """Intervals are part of the table, which must be identical from run to run."""
    one = measured(np.arange(40.0))
    assert np.array_equal(Bootstrap(40, 1).replicates(one), Bootstrap(40, 1).replicates(one))


# ----------------------------------------------------------------------------------------------------------- the table


def point(hits: list[float], draws: int = 2, **links: Any) -> Point:
    tally = Tally(np.array(hits), np.full(len(hits), float(draws)), draws)
    return Point({"attack": links.pop("attack", "none"), "psr_achieved_db": links.pop("db", None)}, {"accuracy": tally},
                 **links)  # fmt: skip


def three_points(shift: float, db: float) -> list[Point]:
    clean = point([2, 2, 2, 1, 2, 2])
    noise = point([2, 2, 1, 1, 2, 2], attack="noise", db=db, clean=0)
    attacked = point([1 - shift, 0, 1, 0, 2, 1], attack="pgd", db=db, clean=0, noise=1)
    return [clean, noise, attacked]


def test_the_table_holds_values_and_paired_differences() -> None:
    table = list(rows([three_points(0, -10.0), three_points(1, -12.0)], [4, 7]))
    found = {(row["seed"], row["attack"], row["metric"]): row for row in table}
    assert found[4, "none", "accuracy"]["value"] == pytest.approx(11 / 12)
    assert found[4, "noise", "accuracy_change"]["value"] == pytest.approx(10 / 12 - 11 / 12)
    assert found[4, "pgd", "accuracy"]["value"] == pytest.approx(5 / 12)
    assert found[4, "pgd", "accuracy_change"]["value"] == pytest.approx(5 / 12 - 11 / 12)
    assert found[4, "pgd", "accuracy_vs_noise"]["value"] == pytest.approx(5 / 12 - 10 / 12)
    assert found[7, "pgd", "accuracy_vs_noise"]["value"] == pytest.approx(4 / 12 - 10 / 12)
    # All seeds together stand in rows without a seed; n counts images times seeds.
    assert found[None, "pgd", "accuracy"]["value"] == pytest.approx(9 / 24)
    assert found[None, "pgd", "accuracy_change"]["value"] == pytest.approx(9 / 24 - 22 / 24)
    assert found[None, "pgd", "accuracy"]["n"] == 12
    assert found[7, "pgd", "accuracy"]["n"] == 6
    assert found[None, "pgd", "accuracy"]["psr_achieved_db"] == pytest.approx(10 * np.log10((10**-1.0 + 10**-1.2) / 2))
    assert (4, "none", "accuracy_change") not in found
    assert (4, "noise", "accuracy_vs_noise") not in found
    assert len(table) == 3 * (1 + 2 + 3)
    for row in table:
        assert row["ci_low"] <= row["value"] <= row["ci_high"]


def test_theory_has_no_interval_of_chance() -> None:
    tally = Tally(np.array([0.93]), np.array([1.0]), 0)
    table = list(rows([[Point({"decoder": "matched_filter"}, {"accuracy": tally})]], [0]))
    assert all(row["value"] == row["ci_low"] == row["ci_high"] == 0.93 for row in table)
    assert all("n" not in row for row in table)


def test_what_was_never_counted_has_no_row() -> None:
    """Misses where no target was drawn: 0 of 0 is not a number, and a number without n is not reported."""
    tallies = {"accuracy": Tally(np.ones(2), np.ones(2), 1), "misses": Tally(np.zeros(2), np.zeros(2), 1)}
    table = list(rows([[Point({}, tallies)]], [0]))
    assert {row["metric"] for row in table} == {"accuracy"}


def test_a_metric_that_one_seed_could_not_measure_has_no_row_over_all_seeds() -> None:
    """A detector's threshold needs a scene without target; a tiny test set may hold none for one of the seeds."""
    both = {"accuracy": Tally(np.ones(2), np.ones(2), 1), "rare": Tally(np.ones(2), np.ones(2), 1)}
    one = {"accuracy": Tally(np.ones(2), np.ones(2), 1)}
    for points in ([[Point({}, both)], [Point({}, one)]], [[Point({}, one)], [Point({}, both)]]):
        table = list(rows(points, [0, 1]))
        assert {row["metric"] for row in table if row["seed"] is None} == {"accuracy"}


def test_few_counted_examples_still_have_an_interval() -> None:
    """One target in five images: a third of the bootstrap replicates hold none and are left out."""
    tally = Tally(np.array([0.0, 0, 1, 0, 0]), np.array([0.0, 0, 2, 0, 0]), 2)
    (row, _) = rows([[Point({}, {"misses": tally})]], [0])
    assert row["value"] == 0.5
    assert math.isfinite(row["ci_low"])
    assert math.isfinite(row["ci_high"])


def test_seeds_must_have_measured_the_same() -> None:
    with pytest.raises(ValueError, match="different numbers"):
        list(rows([three_points(0, -10.0), three_points(0, -10.0)[:2]], [0, 1]))
    other = three_points(0, -10.0)
    other[0].columns["attack"] = "fgsm"
    with pytest.raises(ValueError, match="different points"):
        list(rows([three_points(0, -10.0), other], [0, 1]))


def test_points_survive_the_disk(tmp_path: Any) -> None:
    written = three_points(0, -10.0)
    save_points(written, tmp_path)
    read = load_points(tmp_path)
    assert [(p.columns, p.clean, p.noise) for p in read] == [(p.columns, p.clean, p.noise) for p in written]
    for a, b in zip(read, written, strict=True):
        one, other = tally(a.metrics, "accuracy"), tally(b.metrics, "accuracy")
        assert one.receptions == other.receptions
        np.testing.assert_array_equal(one.numerator, other.numerator)
        np.testing.assert_array_equal(one.denominator, other.denominator)
