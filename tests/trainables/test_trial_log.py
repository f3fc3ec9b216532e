"""What a trial's log tells, and that all else is said as it would be without one."""

import logging
import multiprocessing
import os
import re
import signal
import sys
import time
import warnings
from datetime import UTC, datetime, timedelta

import pytest
import timm
import torch

from tests.conftest import TINY
from trainables.assets import Assets
from trainables.context import RunContext, TrialFailure
from trainables.errors import InputError
from trainables.files import LOG
from trainables.loop import run_trial
from trainables.pack import Pack, Packed
from trainables.trial_log import MOST_HEARD, TrialLog

ENTRY = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00) (\S.*)")
PLAIN = {"distiller": "none", "stages": [], "eps": 1.0, "epochs": 2}


def entries(folder):
    """The entries of a log, each with its further lines."""
    found = []
    for line in (folder / LOG).read_text().splitlines():
        if match := ENTRY.fullmatch(line):
            found.append(match[2])
        else:
            assert line.startswith("    "), line
            found[-1] += f"\n{line[4:]}"
    return found


def train(config, folder, report=lambda metrics: True, known_epoch=0):
    return run_trial(config, Assets(), RunContext(folder, report), known_epoch)


def test_a_trial_tells_what_it_began_with_each_epoch_and_its_end(tiny, tmp_path):
    reports, before = [], datetime.now(UTC) - timedelta(seconds=1)
    config = tiny(**PLAIN)
    train(config, tmp_path, lambda metrics: reports.append(metrics) or True)
    begins, configuration, first, *epochs, end = entries(tmp_path)
    for word in (os.uname().nodename, "cpu", "1 worker", torch.__version__, timm.__version__):
        assert word in begins
    for name, value in config.on("cpu").model_dump(mode="json").items():
        assert f'"{name}": ' in configuration and (not isinstance(value, str) or f'"{value}"' in configuration)
    assert first == "from epoch 1" and end == "ended after epoch 2"
    assert len(epochs) == len(reports) == 2
    for number, (text, metrics) in enumerate(zip(epochs, reports, strict=True), 1):
        told = dict(part.rsplit(" ", 1) for part in text.removeprefix(f"epoch {number}/2: ").split(", "))
        assert {name: float(value) for name, value in told.items()} == pytest.approx(
            {name: value for name, value in metrics.items() if name != "epoch"}, rel=1e-4
        )
    times = [datetime.fromisoformat(line.split()[0]) for line in (tmp_path / LOG).read_text().splitlines()]
    assert before <= times[0] and times == sorted(times) and times[-1] <= datetime.now(UTC)


def test_one_that_was_stopped_and_goes_on_goes_on_in_its_log(tiny, tmp_path):
    config = tiny(**PLAIN | {"epochs": 3})
    train(config, tmp_path, lambda metrics: metrics["epoch"] < 1)
    first = (tmp_path / LOG).read_text()
    assert entries(tmp_path)[-1].startswith("stopped") and entries(tmp_path)[-1].endswith("after epoch 1")
    train(config, tmp_path, known_epoch=1)
    assert (tmp_path / LOG).read_text().startswith(first)
    second = entries(tmp_path)[first.count("\n") :]
    assert second[0].startswith("begins on") and second[2] == "goes on after epoch 1, from its checkpoint"
    assert [text.split(":")[0] for text in second[3:]] == ["epoch 2/3", "epoch 3/3", "ended after epoch 3"]


@pytest.mark.parametrize(
    ("changes", "error"),
    [({"lr": 1e30, "opt": "sgd"}, TrialFailure), ({"student": "nosuch_model"}, InputError)],
    ids=["in training", "before"],
)
def test_a_failure_leaves_its_traceback(tiny, tmp_path, changes, error):
    with pytest.raises(error) as caught:
        train(tiny(**PLAIN | changes), tmp_path)
    last = entries(tmp_path)[-1].splitlines()
    assert last[0] == f"failed: {error.__name__}" and last[1] == "Traceback (most recent call last):"
    assert any(line.startswith('  File "') and "trainables/loop.py" in line for line in last)
    assert str(caught.value) in last[-1]


def test_what_is_logged_and_warned_of_is_heard_and_goes_where_it_went(tiny, tmp_path, monkeypatch, capsys):
    log, told = logging.getLogger("a.library"), logging.StreamHandler(sys.stderr)
    monkeypatch.setattr(log, "propagate", False)  # pytest's own handler raises what ordinary ones print
    log.addHandler(told)
    before = logging.getLogRecordFactory(), warnings.showwarning, list(logging.root.handlers)

    def report(metrics):
        log.warning("the %s of epoch %d", "end", metrics["epoch"])
        log.info("not shown, so not said")
        try:
            raise KeyError("lost")
        except KeyError:
            log.exception("caught")
        log.error("two %d values", "one")  # which logging itself complains of
        return True

    try:
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            train(tiny(**PLAIN), tmp_path, lambda metrics: warnings.warn("odd images", stacklevel=1) or report(metrics))
    finally:
        log.removeHandler(told)
    found = entries(tmp_path)
    assert found.count("WARNING a.library: the end of epoch 1") == 1
    assert sum(text.startswith("UserWarning: odd images (") and __file__ in text for text in found) == 2
    assert not any("not shown" in text for text in found)
    (caught, _) = (text for text in found if text.startswith("ERROR a.library: caught\nTraceback"))
    assert caught.endswith("KeyError: 'lost'")
    assert sum(text.startswith("ERROR a.library: two %d values") for text in found) == 2
    assert [str(one.message) for one in warned] == ["odd images"] * 2
    assert capsys.readouterr().err.count("the end of epoch 1") == 1
    assert before == (logging.getLogRecordFactory(), warnings.showwarning, list(logging.root.handlers))
    size = (tmp_path / LOG).stat().st_size
    log.warning("after it")
    warnings.warn("after it", stacklevel=1)
    assert (tmp_path / LOG).stat().st_size == size


def test_without_handlers_logging_has_its_last_resort(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(logging.root, "handlers", [])
    log = logging.getLogger("another.library")
    train(tiny(**PLAIN | {"epochs": 1}), tmp_path, lambda metrics: log.warning("unheard of") or True)
    assert capsys.readouterr().err == "unheard of\n"
    assert "WARNING another.library: unheard of" in entries(tmp_path)


def test_warnings_that_logging_captures_are_heard_once(tmp_path, tiny):
    logging.captureWarnings(True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            train(tiny(**PLAIN | {"epochs": 1}), tmp_path, lambda metrics: warnings.warn("odd", stacklevel=1) or True)
    finally:
        logging.captureWarnings(False)
    assert sum("UserWarning: odd" in text for text in entries(tmp_path)) == 1


def noisy(name):
    """A student that tells of each pass, by logging."""

    class Noisy(torch.nn.Module):
        def __init__(self, **kwargs):
            super().__init__()
            self.model = timm.create_model(TINY["student"], **kwargs)
            self.pretrained_cfg = self.model.pretrained_cfg

        def forward(self, images):
            logging.getLogger(name).warning("a pass of %s", name)
            return self.model(images)

    return lambda num_classes, img_size, **_: Noisy(
        num_classes=num_classes, img_size=img_size, **TINY["student_kwargs"]
    )


first, second = noisy("first"), noisy("second")


def test_packed_trials_have_logs_of_their_own(tiny, tmp_path):
    pack, ended = Pack(Assets(), 3), {}
    log = logging.getLogger("a.stream")

    def packed(name, answer=lambda metrics: True, **changes):
        config = tiny(**PLAIN | changes)
        context = RunContext(tmp_path / name, answer)
        return Packed(config, context, 0, False, lambda error: ended.update({name: error}))

    pack.begin([
        packed("a", student=f"{__name__}:first", student_kwargs={}),
        packed("b", lambda metrics: False, student=f"{__name__}:second", student_kwargs={}),
        packed("c", student="nosuch_model"),
    ])  # fmt: skip
    (cohort,) = pack._cohorts
    read = cohort._read
    cohort._read = lambda: log.warning("reading") or read()
    while len(pack):
        pack.advance()
    assert ended["a"] is None and ended["b"] is None and isinstance(ended["c"], InputError)
    found = {name: entries(tmp_path / name) for name in "abc"}
    assert "WARNING first: a pass of first" in found["a"] and "WARNING second: a pass of second" in found["b"]
    assert not any("second" in text.split("configuration")[0] for text in found["a"])
    assert not any("WARNING" in text for text in found["c"])
    assert found["a"].count("WARNING a.stream: reading") > found["b"].count("WARNING a.stream: reading") > 0
    assert found["a"][-1] == "ended after epoch 2"
    assert found["b"][-1].startswith("stopped") and found["c"][-1].startswith("failed: InputError")


def test_a_flood_is_counted_and_the_trials_own_is_kept(tiny, tmp_path):
    log = TrialLog(tmp_path)
    log.begin(tiny(), torch.device("cpu"), 1)
    for number in range(MOST_HEARD + 5):
        logging.getLogger("flood").warning("drop %d", number)
    log.epoch({"epoch": 1, "train/loss": 2.0}, 3)
    logging.getLogger("flood").warning("again")
    log.end("ended")
    found = entries(tmp_path)
    assert found[-5:] == [
        f"WARNING flood: drop {MOST_HEARD - 1}", "5 further messages are left out", "epoch 1/3: train/loss 2",
        "WARNING flood: again", "ended",
    ]  # fmt: skip


def test_an_entry_costs_next_to_nothing(tiny, tmp_path):
    log = TrialLog(tmp_path)
    log.begin(tiny(), torch.device("cpu"), 1)
    metrics = {"epoch": 1} | {f"val/metric{number}": number / 7 for number in range(25)}
    begun = time.process_time()
    for _ in range(500):
        log.epoch(metrics, 3)
    assert (time.process_time() - begun) / 500 < 2e-3
    log.end("ended")


def test_a_log_that_cannot_be_written_ends_no_trial(tiny, tmp_path):
    (tmp_path / LOG).mkdir()
    assert train(tiny(**PLAIN | {"epochs": 1}), tmp_path)
    log = TrialLog(tmp_path / "full")
    log.begin(tiny(), torch.device("cpu"), 1)
    os.dup2(os.open("/dev/full", os.O_WRONLY), log._file)
    log.epoch({"epoch": 1}, 3)
    log.end("ended")


def test_a_password_in_a_url_is_not_kept(tiny, tmp_path):
    train(tiny(**PLAIN | {"epochs": 1, "teacher_store_at": "s3://me:secret@host/store"}), tmp_path)
    text = (tmp_path / LOG).read_text()
    assert "s3://me:***@host/store" in text and "secret" not in text


def test_only_rank_0_keeps_a_log(tiny, tmp_path):
    log = RunContext(tmp_path, lambda metrics: True, rank=1, world_size=2).log
    log.begin(tiny(), torch.device("cpu"), 2)
    log.end("ended")
    assert not list(tmp_path.iterdir())


def _speak():
    logging.getLogger("child").warning("from a loader's process")


def test_what_a_loaders_process_says_is_not_heard(tiny, tmp_path):
    """One that is kept would write to the log of the trial that it was forked in, of later trials too."""
    log = TrialLog(tmp_path)
    log.begin(tiny(), torch.device("cpu"), 1)
    child = multiprocessing.get_context("fork").Process(target=_speak)
    child.start()
    child.join(60)
    log.end("ended")
    assert child.exitcode == 0 and not any("loader's process" in text for text in entries(tmp_path))


def _killed(fields, folder):
    from trainables.config import TrialConfig

    torch.set_num_threads(1)
    train(TrialConfig(**fields), folder, lambda metrics: os.kill(os.getpid(), signal.SIGKILL))


def test_a_killed_worker_leaves_what_it_told(tiny, tmp_path):
    child = multiprocessing.get_context("spawn").Process(target=_killed, args=(TINY | PLAIN, tmp_path))
    child.start()
    child.join(120)
    assert child.exitcode == -signal.SIGKILL
    assert entries(tmp_path)[-1].startswith("epoch 1/2: train/loss")
