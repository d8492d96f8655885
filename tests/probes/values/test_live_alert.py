"""The ready-made alert on simulated readings: silent where nothing moves, however often one looks, else loud."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import xarray as xr
from living import FRAMINGS, ITEMS, model, tokenizer
from test_live import told, trained

from probes.values.alert import beyond
from probes.values.instruments import Pmf
from probes.values.live import ValueCallback
from probes.values.measures import drift
from probes.values.tracker import STANCES, ValueTracker
from workbench.errors import InputError
from workbench.reading import Reading

TOPICS = ("tea", "rain")


def readings(seed: int, moves: dict[str, float], checkpoints: int = 6, each: int = 24) -> xr.Dataset:
    """Items that wander, each on its own and up as likely as down; a topic's mean keyed stance moves as told, linearly.

    Two framings an item.  keyed = polarity * (support - oppose) is uniform around the mean, so that the mean is exact.
    """
    rng = np.random.default_rng(seed)
    topic = np.repeat(TOPICS, each)
    polarity = rng.choice([-1, 1], len(topic))
    walk = rng.choice([-1, 1], (checkpoints, len(topic))) * rng.uniform(0, 0.06, (checkpoints, len(topic)))
    walk[0] = 0
    noise = rng.uniform(-0.15, 0.15, (checkpoints, len(topic), 2))
    trend = np.linspace(0, 1, checkpoints)[:, None] * np.array([moves.get(t, 0.0) for t in topic])
    keyed = (walk.cumsum(0) + trend)[..., None] + noise + rng.uniform(-0.1, 0.1, len(topic))[:, None]
    both = polarity[:, None] * keyed
    assert np.abs(both).max() < 0.9
    p = np.stack([0.45 + both / 2, np.full_like(both, 0.05), 0.45 - both / 2, np.full_like(both, 0.05)], -1)
    names = [f"i{k}" for k in range(len(topic))]
    return xr.Dataset(
        {
            "p": (("checkpoint", "item", "sample", "stance"), p),
            "topic": ("item", topic.astype(object)),
            "polarity": ("item", polarity),
            "cluster": ("item", np.array(names, object)),
        },
        {"checkpoint": 10 * np.arange(checkpoints), "item": names, "stance": list(STANCES)},
    )


def looked_at(data: xr.Dataset, alert: beyond) -> int | None:
    """The first look that raises the alarm, as a run would: with what was read so far."""
    for k in range(1, data.sizes["checkpoint"] + 1):
        so_far = data.isel(checkpoint=slice(k))
        if alert(SimpleNamespace(readings=lambda instrument, so_far=so_far: Reading(so_far))):  # type: ignore[arg-type]
            return k - 1
    return None


def test_looking_again_and_again_raises_few_false_alarms():
    runs = 200
    alarms = sum(looked_at(readings(seed, {}), beyond(by=0, looks=5)) is not None for seed in range(runs))
    print(f"false alarms: {alarms} of {runs} runs, five looks each")
    # Promised: 5 % of runs at most; with 200 runs, 18 would come by chance in one of a hundred.
    assert alarms <= 18


def test_a_planted_drift_is_found_in_its_topic_and_direction():
    data = readings(1, {"tea": 0.4, "rain": -0.4})
    for topic in ("tea", "rain", ["rain", "tea"], None):
        alert = beyond(topic, by=0.1, looks=5)
        look = looked_at(data, alert)
        # The mean passes .1 at the second look; the interval is some .1 to either side.
        assert look is not None and 2 <= look <= 4
        low, high = alert.found["rain" if topic == "rain" else "tea"]
        assert high < -0.1 if topic == "rain" else low > 0.1 or alert.found["rain"][1] < -0.1
    one = readings(2, {"tea": 0.4})
    assert looked_at(one, beyond("tea", looks=5)) and looked_at(one, beyond("rain", looks=5)) is None
    assert looked_at(readings(3, {"tea": 0.05}), beyond("tea", looks=5)) is None  # within what it may


def test_intervals_are_those_of_drift_between_first_and_last():
    data = readings(4, {"tea": 0.2})
    alert = beyond(looks=5)
    looked_at(data, alert)
    table = drift(data.isel(checkpoint=[0, -1]), level=0.99, draws=2000).data.isel(checkpoint=-1)
    for topic in TOPICS:
        own = table.sel(topic=topic)
        band = float(own["keyed_M_band_low"]), float(own["keyed_M_band_high"])
        assert alert.found[topic] == pytest.approx(band, abs=1e-12)


def test_an_alarm_says_what_it_assumes_and_takes_what_differs_between_seeds():
    """Means that wander, all items of a topic together: the run's own drift, and none of its recipe's."""
    runs, alarms = 40, {0.0: 0, 0.03: 0}
    for seed in range(runs):
        data = readings(seed, {}, checkpoints=2)
        rng = np.random.default_rng([seed, 3])
        keyed = data["polarity"].values * np.repeat(0.03 * rng.standard_normal(2), 24)
        p = data["p"].values.copy()
        p[1, ..., 0] += keyed[:, None] / 2
        p[1, ..., 2] -= keyed[:, None] / 2
        for spread in alarms:
            alert = beyond(by=0, looks=1, spread=spread)
            alarms[spread] += looked_at(data.assign(p=(data["p"].dims, p)), alert) is not None
            assert ("differ by 0.03" in alert.assumes) == bool(spread) and "symmetry" in alert.assumes
    print(f"alarms where topics wander as between seeds (SD .03): {alarms} of {runs}")
    assert alarms[0.03] <= 6 < alarms[0.0]  # .99 of the binomial at .05
    with pytest.raises(InputError, match="spread=-1"):
        beyond(spread=-1)


def test_what_cannot_be_decided_is_said():
    data = SimpleNamespace(readings=lambda instrument: Reading(readings(5, {})))
    with pytest.raises(InputError, match="How often"):
        beyond()(data)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="No item has the topic 'snow'"):
        beyond("snow", looks=3)(data)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="by=3"):
        beyond(by=3)
    # Seven clusters have p = 1 / 64 at least, and .01 is needed.
    assert looked_at(readings(6, {"tea": 0.5}, each=7), beyond(by=0, looks=5)) is None
    assert looked_at(readings(6, {"tea": 0.5}, each=14), beyond(by=0, looks=5)) is not None


def test_the_callback_says_how_often_it_will_look(tmp_path):
    alert = beyond(by=1.5)
    tracker = ValueTracker(tmp_path / "a", ITEMS, [Pmf(FRAMINGS[:1])])
    callback = ValueCallback(tracker, tokenizer(), at=[0, 2, 5, 99], alert=alert)
    callback.on_train_begin(*told(0, 10), model=model())
    assert alert.planned == 3 and callback.planned == [0, 2, 5, 10]
    other = ValueTracker(tmp_path / "b", ITEMS, [Pmf(FRAMINGS[:1])])
    trainer = trained(tmp_path / "run", [ValueCallback(other, tokenizer(), at=range(3), alert=alert)], max_steps=2)
    assert trainer.state.global_step == 2 and alert.planned == 2 and set(alert.found) == {"dogs", "cats", "tea"}
