"""What lanes share. Whole lanes run in the tests of studies."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from search import lanes as lanes_module
from search.lanes import FULL_S, Lanes
from search.settings import Settings

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


def test_lanes_keep_away_for_a_while_from_a_node_whose_disk_is_full_and_for_good_from_one_that_is_unfit(monkeypatch):
    told, disks, clock = [], [("a", "no space left")], [0.0]
    monkeypatch.setattr(lanes_module.ray, "get", lambda answer: answer)
    monkeypatch.setattr(lanes_module, "name_of", lambda node: f"host-{node}")
    monkeypatch.setattr(lanes_module.time, "monotonic", lambda: clock[0])
    broker = SimpleNamespace(disks=SimpleNamespace(remote=lambda: list(disks)))
    lanes = Lanes(broker, Settings.model_construct(concurrency=2, address="a:1"), ".")
    lanes.note = told.append
    placed = {0: "a"}
    monkeypatch.setattr(lanes_module, "placement_group_table", lambda place: {"bundles_to_node_id": placed})
    monkeypatch.setattr(lanes_module, "unfit", lambda nodes, storage: {"c": "other versions"} if "c" in nodes else {})
    assert lanes._check_nodes(None)
    for _ in range(2):
        lanes._hear_of_disks()
    assert lanes._avoided() == {"a": "disk: node host-a has no room for what trials write (no space left)"}
    assert not lanes._check_nodes(None), "it was asked for before that was known"
    placed[0] = "c"
    assert not lanes._check_nodes(None) and not lanes._check_nodes(None)
    assert told == [f"{lanes._avoided()['a']}; it gets no lane for 10 minutes", "other versions"]
    clock[0] = FULL_S + 1
    assert lanes._avoided() == {"c": "other versions"}
    disks.append(("a", "no space left"))
    lanes._hear_of_disks()
    assert lanes._avoided().keys() == {"a", "c"} and len(told) == 3
