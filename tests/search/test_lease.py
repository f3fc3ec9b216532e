"""The lease of a study's session, on a server that speaks S3."""

import json
import os
import subprocess
import sys

import pytest

from search import lease
from search.lease import Lease, holder
from search.storage import SESSION
from tests.search.object_store import BUCKET
from tests.search.studies import ROOT, wait_for
from trainables.errors import InputError
from trainables.remote import Remote

TAKE = """
import os, sys
sys.path.insert(0, {root!r})
from search.lease import Lease
from trainables.remote import Remote
Lease(Remote({url!r}), "s").take()
os._exit(0)
"""


@pytest.fixture
def study(store):
    return Remote(f"{store.url}/s")


def changed(study, **fields):
    """The lease as somebody else would have written it."""
    holder = json.loads(study.read(SESSION)) | fields
    study.write(SESSION, json.dumps(holder).encode())


def test_a_second_session_is_refused_until_the_first_lets_go(study):
    first, second = Lease(study, "s"), Lease(study, "s")
    first.take()
    with pytest.raises(InputError, match=r"study 's' is being run \(process \d+ on .*its lease ends in (60|59) s"):
        second.take()
    first.release()
    second.take()
    assert second.before == first.token
    first.release()  # it is not its own any more
    with pytest.raises(InputError, match="is being run"):
        Lease(study, "s").take()


def test_of_two_that_begin_at_once_one_has_it(study):
    class Slow(Remote):
        def read(self, name):
            return None if not came.append(name) and len(came) == 1 else super().read(name)

    came = []
    Lease(study, "s").take()
    with pytest.raises(InputError, match="is being run"):  # it saw none, and then cannot make one
        Lease(Slow(study.url), "s").take()


def test_a_killed_sessions_lease_ends_at_once_on_its_own_machine(study, store):
    subprocess.run([sys.executable, "-c", TAKE.format(root=str(ROOT), url=study.url)], check=True)
    Lease(study, "s").take()


def test_another_machines_lease_ends_with_time(study, monkeypatch):
    first, second = Lease(study, "s"), Lease(study, "s")
    first.take()
    changed(study, boot="another", pid=1)
    with pytest.raises(InputError, match="is being run"):
        second.take()
    monkeypatch.setattr(lease, "STALE_S", 2.0)

    def ended():
        try:
            second.take()
        except InputError:
            return False
        return True

    wait_for(ended, "the lease's end", 60)


def test_a_lease_is_renewed_while_it_is_held(study, monkeypatch):
    monkeypatch.setattr(lease, "RENEWED_EVERY_S", 0.2)
    mine = Lease(study, "s")
    mine.take()
    before = study.about(SESSION).when
    mine.hold(lambda: None)
    wait_for(lambda: study.about(SESSION).when > before, "a renewal", 60)
    mine.release()


def test_who_was_away_for_too_long_is_told(study, monkeypatch):
    monkeypatch.setattr(lease, "RENEWED_EVERY_S", 0.2)
    told, mine = [], Lease(study, "s")
    mine.take()
    changed(study, token="another's")
    mine.hold(lambda: told.append("lost"))
    wait_for(lambda: told, "the loss", 60)
    mine.release()
    assert json.loads(study.read(SESSION))["token"] == "another's"


def test_who_holds_a_study_is_told_to_those_who_look(study, store, monkeypatch):
    assert holder(study) == ""
    mine = Lease(study, "s")
    mine.take()
    who = f"process {os.getpid()} on {os.uname().nodename}"
    assert holder(study) == who
    changed(study, host="elsewhere", boot="another", pid=1)
    assert holder(study) == "process 1 on elsewhere"
    store.deny("s3:PutObject")
    assert holder(study) == "process 1 on elsewhere", "who may only read is told too"
    store.client.delete_bucket_policy(Bucket=BUCKET)
    monkeypatch.setattr(lease, "STALE_S", 0.0)
    assert holder(study) == ""
    monkeypatch.setattr(lease, "STALE_S", 60.0)
    changed(study, host=os.uname().nodename, boot=lease._boot(), pid=os.getpid())
    assert holder(study) == who
    mine.release()
    assert holder(study) == ""
    assert [name for name in store.names("s") if "now" in name] == []


def test_a_killed_session_of_this_machine_holds_nothing(study):
    subprocess.run([sys.executable, "-c", TAKE.format(root=str(ROOT), url=study.url)], check=True)
    assert holder(study) == ""
