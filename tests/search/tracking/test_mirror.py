"""MLflow made equal to a study's folder: a real store, written directly."""

import math

import pytest

from search.ledger import FAILED, PRUNED, Ledger
from search.tracking import parent
from search.tracking.mirror import Mirror
from search.tracking.store import connect, experiment_exists
from search.tracking.study_run import StudyRun
from tests.search.tracking.tracked import STUDY, Seen, Told, begin, make_record, metrics_of, points_of
from trainables.errors import InputError


@pytest.fixture(scope="module")
def uri(tmp_path_factory):
    return f"sqlite:///{tmp_path_factory.mktemp('store')}/mlflow.db"  # making one takes seconds


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "runs" / f"{STUDY} of {tmp_path.name}"


@pytest.fixture
def look(uri, folder):
    return lambda: Seen(uri, folder.name)


@pytest.fixture
def told(folder):
    return Told(folder)


def write(uri, folder, live=()):
    """All of a folder, by a mirror that knows nothing yet; returns how many trials lacked something."""
    mirror = Mirror(uri, folder)
    mirror.open()
    written = sum(mirror.trial(place, place.split("/")[-1] in live) for place in mirror.places())
    mirror.study()
    mirror.end()
    return written


def test_a_study_is_one_parent_with_a_child_a_trial(uri, folder, told, look):
    run = begin(folder)
    assert not experiment_exists(uri, folder.name)
    trial, per_stage, failing, baseline = (
        make_record("7", stages=[1, 2, 4]),
        make_record("8", stages=[1, 3], eps=[1.5, 0.5, 2.0]),
        make_record("9", stages=[]),
        make_record("scratch", role="baseline", distiller="none"),
    )
    told.play(trial, [1, 2, 3])
    told.play(per_stage, [1])
    told.started(failing)
    failing.finish(error="out of memory\n" + "x" * 9000)
    told.changed(failing)
    told.play(baseline, [1, 2, 3])
    (folder / "picture.txt").write_text("a picture")
    run.add_metric("best", 53.0, 1)
    run.add_metric("best", math.nan, 2)
    run.add_artifact(folder / "picture.txt")
    run.set_tags({"verdict": "fine"})
    run.end("FINISHED")
    assert write(uri, folder) == 4

    assert experiment_exists(uri, folder.name)
    seen = look()
    runs = seen.children
    states = {"7": "complete", "8": PRUNED, "9": FAILED, "scratch": "complete"}
    assert {key: run.data.tags["state"] for key, run in runs.items()} == states
    statuses = {"7": "FINISHED", "8": "KILLED", "9": "FAILED", "scratch": "FINISHED"}
    assert {key: run.info.status for key, run in runs.items()} == statuses
    assert runs["7"].info.run_name == "trial 7"
    assert runs["scratch"].info.run_name == "baseline scratch"
    assert runs["scratch"].data.tags["role"] == "baseline"
    assert runs["7"].info.start_time == int(trial.started * 1000)
    assert runs["7"].info.end_time == int(trial.ended * 1000)
    assert runs["9"].data.tags["reason"].startswith("out of memory")
    assert runs["7"].data.metrics == {"train/loss": 2 / 3, "val/top1": 53.0, "best/val_top1": 53.0}
    for record in (trial, per_stage, failing, baseline):
        assert seen.points(runs[record.trial_id]) == points_of(record)

    names = set(runs["7"].data.params)
    assert names == set(runs["9"].data.params) == set(runs["scratch"].data.params)
    assert {"student", "teacher", "distiller", "eps", "temperature", "stages", "lr", "epochs", "opt"} <= names
    assert not names & {"seed", "data", "epoch"}
    assert set(runs["8"].data.params) - names == {"eps_stage1", "eps_stage3"}
    assert runs["7"].data.params["stages"] == "1,2,4"
    assert runs["9"].data.params["stages"] == "none"
    assert runs["8"].data.params["eps"] == "1.5,0.5,2.0"
    assert runs["8"].data.params["eps_logits"] == "2.0"

    parent = seen.parent
    assert (parent.info.status, parent.info.run_name) == ("FINISHED", folder.name)
    assert (parent.info.start_time, parent.info.end_time) == (run.started, run.ended)
    assert parent.data.params == {"trials": "4"}
    assert parent.data.tags | {"role": "study", "pair": "a-b", "verdict": "fine"} == parent.data.tags
    assert seen.steps(parent, "best") == [1]
    assert {entry.path for entry in seen.client.list_artifacts(parent.info.run_id)} == {"picture.txt", "settings"}
    assert (folder.parent / "artifacts" / folder.name).is_dir()


def test_writing_again_adds_nothing(uri, folder, told, look):
    begin(folder).end("FINISHED")
    records = [make_record("1"), make_record("2")]
    told.play(records[0], [1, 2, 3])
    told.play(records[1], [1, 2], end=False)
    assert write(uri, folder) == 2
    before = {key: (run.info.run_id, look().points(run)) for key, run in look().children.items()}
    assert write(uri, folder) == 0
    assert {key: (run.info.run_id, look().points(run)) for key, run in look().children.items()} == before


@pytest.mark.parametrize(
    ("call", "which"),
    [("create_experiment", 1), ("log_text", 1)]
    + [(call, which) for call in ("create_run", "log_batch", "set_terminated") for which in (1, 2, 3)],
)
@pytest.mark.parametrize("arrives", [True, False], ids=["answer lost", "request lost"])
def test_whatever_is_cut_off_is_there_once_after_the_next_try(
    uri, folder, told, monkeypatch, call, which, arrives, look
):
    run = begin(folder)
    records = [make_record("1"), make_record("2")]
    for record in records:
        told.play(record, [1, 2, 3])
    run.add_metric("best", 53.0, 0)
    run.end("FINISHED")
    client = type(connect(uri))
    right, calls = getattr(client, call), []

    def breaks(self, *arguments, **keywords):
        calls.append(1)
        if len(calls) == which:
            if arrives:
                right(self, *arguments, **keywords)
            raise ConnectionError("the line is dead")
        return right(self, *arguments, **keywords)

    with monkeypatch.context() as patched:
        patched.setattr(client, call, breaks)
        try:
            write(uri, folder)
        except ConnectionError:
            write(uri, folder)
        assert len(calls) >= which
    seen = look()
    for record in records:
        assert seen.points(seen.children[record.trial_id]) == points_of(record)
        assert seen.children[record.trial_id].info.status == "FINISHED"
    assert seen.steps(seen.parent, "best") == [0] and seen.parent.info.status == "FINISHED"
    assert [entry.path for entry in seen.client.list_artifacts(seen.parent.info.run_id)] == ["settings"]


def test_a_request_that_was_carried_out_late_leaves_no_second_run(uri, folder, told, look):
    begin(folder)
    record = make_record("1")
    told.play(record, [1], end=False)
    write(uri, folder, live={"1"})
    seen = look()
    client, experiment = seen.client, seen.experiment.experiment_id
    tags = {"role": "trial", "trial_id": "1", "mlflow.parentRunId": seen.parent.info.run_id}
    for late in ({"role": "study"}, tags):
        client.create_run(experiment, int(record.started * 1000) + 1, late, "late")
    write(uri, folder, live={"1"})
    assert look().points(look().children["1"]) == points_of(record)


def test_an_interrupted_study_goes_on_in_the_same_runs(uri, folder, told, look):
    run = begin(folder)
    record = make_record("1")
    told.play(record, [1, 2], end=False)
    write(uri, folder, live={"1"})
    assert look().children["1"].data.tags["state"] == "running" and look().parent.info.status == "RUNNING"
    run.end("KILLED")
    write(uri, folder)
    before = look().children["1"]
    assert (before.info.status, before.data.tags["state"]) == ("KILLED", "interrupted")
    assert look().parent.info.status == "KILLED"

    run = begin(folder, params={"trials": 9, "seed": 1})
    told = Told(folder)
    record = told.ledger.records["1"]
    told.started(record)
    write(uri, folder, live={"1"})
    assert look().children["1"].info.status == "RUNNING" and look().parent.info.status == "RUNNING"
    record.add(metrics_of(3))
    record.finish()
    told.changed(record)
    run.end("FINISHED")
    write(uri, folder)
    seen = look()
    (after,) = seen.children.values()
    assert after.info.run_id == before.info.run_id
    assert (after.info.status, after.data.tags["state"]) == ("FINISHED", "complete")
    assert seen.points(after) == points_of(record)
    assert seen.parent.data.params == {"trials": "4", "seed": "1"}, "MLflow's params are final"
    assert seen.parent.data.tags["resumed/trials"] == "9"
    assert seen.parent.info.status == "FINISHED"


def test_what_is_begun_anew_has_a_run_of_its_own(uri, folder, told, look):
    """A failed baseline is trained again: the epochs of both attempts would be mixed in one run."""
    begin(folder)
    record = make_record("kd", "baseline")
    told.play(record, [1, 2], end=False)
    record.finish("it broke")
    told.changed(record)
    write(uri, folder)
    failed = look().children["kd"]
    anew = make_record("kd", "baseline")
    anew.started = record.started + 5
    told.play(anew, [1, 2, 3])
    write(uri, folder)
    (run,) = look().children.values()
    assert run.info.run_id != failed.info.run_id and run.data.tags["state"] == "complete"
    assert look().points(run) == points_of(anew)


def test_a_study_of_another_name_is_never_written_to(uri, folder, told):
    client = connect(uri)
    experiment = client.create_experiment(folder.name, artifact_location=(folder.parent / "artifacts").as_uri())
    theirs = client.create_run(experiment, tags={"role": "study"}).info.run_id
    for adopts in (False, True):
        begin(folder, adopts=adopts).set_tags({"comparable": "ours"})
        with pytest.raises(InputError, match="of another study"):
            write(uri, folder)
        (folder / "tracking.json").unlink()
    begin(folder)
    with pytest.raises(InputError, match="does not have this study"):
        Mirror(uri, folder).attach([folder / "tracking.json"])
    assert client.list_artifacts(theirs) == []


def test_a_name_that_a_refused_study_left_is_free(uri, folder, told, look):
    place = (folder.parent / "artifacts").as_uri()
    connect(uri).create_experiment(folder.name, artifact_location=place, tags={"study_id": "of one that is gone"})
    begin(folder)
    told.play(make_record("1"), [1])
    assert write(uri, folder) == 1 and look().children.keys() == {"1"}


def test_what_is_refused_of_the_study_holds_up_nothing_of_it(uri, folder, told, look):
    run = begin(folder)
    run.begin({}, {}, {"../outside.txt": "no such artifact", "last.txt": "but this"})
    run.add_metric("not * allowed", 1.0, 0)
    (folder / "picture.txt").write_text("a picture")
    run.add_artifact(folder / "picture.txt")
    mirror = Mirror(uri, folder)
    mirror.open()
    with pytest.raises(Exception, match="Invalid"):
        mirror.study()
    seen = look()
    held = {entry.path for entry in seen.client.list_artifacts(seen.parent.info.run_id)}
    assert held == {"last.txt", "picture.txt", "settings"}


def test_a_file_is_put_into_the_study_s_own_run(uri, folder, told, look):
    begin(folder)
    write(uri, folder)
    (folder / "report.md").write_text("better")
    Mirror(uri, folder).attach([folder / "report.md"])
    assert "report.md" in {entry.path for entry in look().client.list_artifacts(look().parent.info.run_id)}


def test_a_deleted_experiment_keeps_its_name(uri, folder, told):
    begin(folder)
    write(uri, folder)
    client = connect(uri)
    client.delete_experiment(client.get_experiment_by_name(folder.name).experiment_id)
    with pytest.raises(InputError, match="was deleted"):
        write(uri, folder)


def test_a_study_that_was_logged_before_its_folder_kept_that_goes_on(uri, folder, told, look):
    client = connect(uri)
    experiment = client.create_experiment(folder.name, artifact_location=(folder.parent / "artifacts").as_uri())
    client.create_run(experiment, tags={"role": "study"}, run_name=folder.name)
    begin(folder, adopts=True)
    write(uri, folder)
    assert look().parent.data.params == {"trials": "4"}


def test_numbers_that_are_not_finite_are_dropped(uri, folder, told, look):
    begin(folder)
    record = make_record()
    told.started(record)
    for epoch, loss in ((1, math.nan), (2, math.inf), (3, 1.0)):
        record.add({"epoch": epoch, "val/top1": 10.0, "train/loss": loss})
        told.changed(record)
    write(uri, folder)
    seen = look()
    assert seen.steps(seen.children["7"]) == [1, 2, 3]
    assert seen.steps(seen.children["7"], "train/loss") == [3]


def test_a_long_trial_goes_in_several_requests(uri, folder, told, monkeypatch, look):
    monkeypatch.setattr(parent, "MOST_METRICS", 4)
    begin(folder)
    record = make_record()
    told.play(record, [1, 2, 3])
    write(uri, folder)
    assert look().points(look().children["7"]) == points_of(record)


def test_a_record_of_an_earlier_version_has_the_times_that_its_epochs_took(folder, told):
    record = make_record()
    record.history, record.times = [{"epoch": 1, "time/epoch_s": 2.0}, {"epoch": 2, "time/epoch_s": 3.0}], []
    told.ledger.save(record)
    (loaded,) = Ledger(folder / "trials").records.values()
    assert loaded.times == [record.started + 2.0, record.started + 5.0]


def test_what_the_parent_is_to_hold_outlives_the_session(folder):
    run = begin(folder)
    run.add_metric("teacher/top1", 97.0, 0)
    again = begin(folder)
    again.add_metric("teacher/top1", 97.0, 0)
    assert len(again.metrics) == 1, "a resumed study tells its teacher's figure again"
    again.add_metric("teacher/top1", 98.0, 0)
    assert StudyRun.read(folder) == again and again.study_id == run.study_id and len(again.metrics) == 2
    (folder / "tracking.json").write_text("{")
    with pytest.raises(InputError, match=r"tracking\.json is broken"):
        StudyRun.read(folder)
