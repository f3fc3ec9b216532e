"""What lanes share. Whole lanes run in the tests of studies."""

import subprocess
import sys
from pathlib import Path

import pytest

# A process of its own: Ray is not to live on in this one.
SCRIPT = """
import ray, numpy as np
from search.lanes import Lanes
from search.settings import Settings
from trainables.config import TrialConfig, data_fields
from trainables.data import load_splits

ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
settings = Settings.model_construct(concurrency=1, data="digits", img_size=16, max_images=40)
splits = load_splits(data_fields(settings))
reference = Lanes(None, settings, ".", splits)._data

@ray.remote
def lane(shared):
    from trainables.assets import Assets

    assets = Assets()
    assets.take(*ray.get(shared[0]))
    found = assets.splits(TrialConfig(data="digits", img_size=16, max_images=40, teacher="t", student="s", epochs=1))
    arrays = found.train.source.arrays
    assert found.train.source is found.holdout.source, "one source, not one a split"
    return arrays.flags.writeable, arrays.base is not None, int(arrays.sum()), found.fingerprint

for told in ray.get([lane.remote([reference]) for _ in range(2)]):
    assert told == (False, True, int(splits.train.source.arrays.sum()), splits.fingerprint), told
print("shared")
"""


@pytest.mark.long
def test_lanes_of_a_node_read_one_copy_of_the_data(tmp_path):
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", SCRIPT.replace('"."', repr(str(tmp_path)))]
    found = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert found.stdout.endswith("shared\n"), found.stderr[-2000:]


# Every Ray Train run of every lane fails at once.
ALL_FAIL = """
import time
import ray
from search.brokering import start_broker
from search.lanes import Lanes
from search.settings import Settings
from pathlib import Path

ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")

class Fails:
    def fit(self):
        raise RuntimeError("no such device")

Lanes._trainer = lambda self, number, place: Fails()
broker = start_broker(Path(".") / "broker.jsonl")
lanes = Lanes(broker, Settings.model_construct(concurrency=2), Path("."))
lanes.start()
while lanes.all_lost() is None:
    time.sleep(0.1)
print(lanes.all_lost())
ray.get(broker.close.remote())
assert lanes.close()
"""


@pytest.mark.long
def test_a_study_whose_lanes_all_fail_is_told_so(tmp_path):
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", ALL_FAIL.replace('Path(".")', f"Path({str(tmp_path)!r})")]
    found = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=300)
    lost = "lane {} was lost: RuntimeError: no such device"
    assert found.stdout.strip() == "; ".join(lost.format(number) for number in (0, 1)), found.stderr[-2000:]
