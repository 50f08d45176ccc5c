"""The bench of packed epochs: what it counts, and a run of it at tiny sizes."""

import json

import pytest
from ml_collections import ConfigDict
from toy_packed import L, data, log

from configs import recmamba
from jaxrec.bench import packing


def test_an_epoch_is_counted_on_both_forms():
    """24 histories of 3 to 40 events: 16 slots a row, the first event has no target."""
    timestep = log()[1]
    events, users = len(timestep), int((timestep == 0).sum())
    packed, padded = (packing.size(data(how)) for how in ("packed", "users"))
    assert packed["targets"] == events - users
    assert packed["padding"] == packed["rows"] * L - events
    assert padded["rows"] == users
    # Two histories are longer than a window: 40 and 20 events, 16 of them targets.
    assert padded["targets"] == events - users - (39 - L) - (19 - L)
    assert padded["padding"] == users * L - padded["targets"] > packed["padding"]
    found = packing.of_epoch(500.0, 8, packed)
    assert found["epoch_seconds"] == pytest.approx(packed["rows"] / 16, abs=0.01)
    assert found["updates"] == pytest.approx(packed["rows"] / 8, abs=0.1)


@pytest.mark.slow
def test_both_forms_run(tmp_path):
    config = ConfigDict(recmamba.get_config("smoke"))
    config.data.data_dir = str(tmp_path)
    found = packing.measure(config, updates=2, rounds=1)
    seconds = [found[form]["epoch_seconds"] for form in packing.FORMS]
    assert found["gain"] == pytest.approx(seconds[1] / seconds[0], rel=0.1)
    # All histories are longer than a row: the padded form cuts them.
    assert found["packed"]["targets"] > found["padded"]["targets"] > 0
    assert found["measured_updates"] == 2
    json.dumps(found)
