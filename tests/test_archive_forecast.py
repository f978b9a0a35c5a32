"""What a sample says about the whole."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from medenhance_dicom.archive.forecast import (
    Estimate,
    Measured,
    Population,
    Stratum,
    draw,
    forecast,
    place,
    wilson,
)

EYE, GUT = Stratum("OP", "Maker One"), Stratum("ES", "Maker Two")


def measured(key, stratum=EYE, instances=10, seconds=1.0, withheld=0, **more):
    return Measured(key, stratum, instances, seconds, 0.1, 1000 * instances, instances, withheld, **more)


def test_wilson_is_that_of_the_textbook():
    # Newcombe 1998, table I: 81 of 263, 15 of 148, 0 of 20, 1 of 29.
    for successes, trials, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0, 0.1611)):
        assert wilson(successes, trials)[1:] == pytest.approx((low, high), abs=5e-5)
    assert wilson(1, 29) == pytest.approx((1 / 29, 0.0061, 0.1718), abs=5e-5)
    assert wilson(0, 0) == (0, 0, 1)
    assert wilson(7, 7).high == 1


def test_the_draw_is_of_the_series_alone():
    series = [(f"key{n}", EYE if n % 3 else GUT, 2) for n in range(900)]
    drawn, population = draw(series, 0.05, seed=3)
    assert population == {EYE: Population(600, 1200), GUT: Population(300, 600)}
    assert 20 < len(drawn[EYE]) < 40  # about 30
    assert 7 < len(drawn[GUT]) < 23
    assert draw(reversed(series), 0.05, seed=3)[0] == drawn
    assert draw(series, 0.05, seed=4)[0] != drawn
    smaller = draw(series, 0.02, seed=3)[0]
    assert set(smaller[EYE]) < set(drawn[EYE])  # a larger share keeps what was measured for a smaller one
    assert draw(series[:4], 0.001)[0] == {EYE: drawn_all(series[:4], EYE), GUT: drawn_all(series[:4], GUT)}


def drawn_all(series, stratum):
    return sorted((key for key, of, _ in series if of == stratum), key=lambda key: place(key, 0, "sample"))


def test_places_are_spread_evenly_and_differ_by_use():
    places = np.array([place(f"k{n}", 0, "sample") for n in range(4000)])
    assert abs(places.mean() - 0.5) < 0.02
    assert np.histogram(places, 10, (0, 1))[0].min() > 330
    others = np.array([place(f"k{n}", 0, "shadow") for n in range(4000)])
    assert abs(np.corrcoef(places, others)[0, 1]) < 0.05


def test_what_was_all_measured_is_known():
    sample = [measured("a", seconds=2.0, withheld=1), measured("b", seconds=3.0)]
    found = forecast(sample, {EYE: Population(2, 20)}).total
    assert found.seconds == Estimate(5.0, 5.0, 5.0)
    assert found.bytes == Estimate(20_000, 20_000, 20_000)
    assert found.withheld_share == Estimate(0.05, 0.05, 0.05)


def test_the_whole_follows_by_ratio_to_instances():
    sample = [measured("a", instances=10, seconds=1.0), measured("b", instances=30, seconds=3.0)]
    found = forecast(sample, {EYE: Population(1000, 20_000)}).total
    assert found.seconds.value == pytest.approx(2000)
    assert found.seconds.low == pytest.approx(2000)  # the same for every instance
    assert found.withheld_share.low == 0
    assert found.withheld_share.high == pytest.approx(wilson(0, 2).high)


def test_one_series_tells_nothing_of_the_spread_and_none_is_said_so():
    found = forecast([measured("a")], {EYE: Population(9, 90), GUT: Population(4, 40)})
    assert found.total.seconds.value == pytest.approx(9)
    assert found.total.seconds.low is None
    assert found.unmeasured == {GUT: Population(4, 40)}
    with pytest.raises(ValueError, match="nothing"):
        forecast([], {EYE: Population(9, 90)})


def test_intervals_hold_the_truth_as_often_as_they_say():
    random = np.random.default_rng(5)
    hits = {"seconds": 0, "withheld": 0}
    rounds = 200
    for _ in range(rounds):
        sample, population, truth, withheld = [], {}, 0.0, [0, 0]
        for stratum, count, rate, gated in ((EYE, 300, 0.2, 0.1), (GUT, 60, 1.0, 0.3)):
            instances = random.integers(1, 40, count)
            seconds = instances * rate * random.lognormal(0, 0.4, count)
            out = np.where(random.random(count) < gated, instances, 0)
            truth += seconds.sum()
            withheld[0] += out.sum()
            withheld[1] += instances.sum()
            population[stratum] = Population(count, int(instances.sum()))
            sample += [
                measured(str(n), stratum, int(instances[n]), float(seconds[n]), int(out[n]))
                for n in random.choice(count, 15, replace=False)
            ]
        total = forecast(sample, population, draws=300).total
        hits["seconds"] += total.seconds.low <= truth <= total.seconds.high
        hits["withheld"] += total.withheld_share.low <= withheld[0] / withheld[1] <= total.withheld_share.high
    assert 0.9 <= hits["seconds"] / rounds <= 0.99
    assert hits["withheld"] / rounds >= 0.9


def test_modalities_add_up_to_the_total():
    sample = [measured(f"{s.modality}{n}", s, seconds=1.0 + n) for s, n in itertools.product((EYE, GUT), range(4))]
    found = forecast(sample, {EYE: Population(50, 500), GUT: Population(8, 80)})
    parts = found.modalities.values()
    assert sum(part.seconds.value for part in parts) == pytest.approx(found.total.seconds.value)
    assert sum(part.series for part in parts) == found.total.series == 58
    assert found.strata[EYE].seconds == found.modalities["OP"].seconds
    whole = found.total.seconds
    assert whole.high - whole.value < sum(part.seconds.high - part.seconds.value for part in parts)
