"""The torture rig: it finds nothing in the node, and it finds what is put there to be found."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.torture.archive import Stored
from benchmarks.torture.instances import Instance
from benchmarks.torture.senders import BULK, SCANNERS, Acknowledged
from benchmarks.torture.verdict import judge
from tests.namespaces import may_mount

ROOT = Path(__file__).parents[2]
_ONE = "MEDENHANCE_TORTURE_INSIDE"
needs_root = pytest.mark.skipif(
    not may_mount() or not Path("/sbin/mkfs.ext4").exists(), reason="may not mount a file system, or has no ext4"
)


def acknowledged(uid="1.1", digest="a" * 64, patient="P1", calling=SCANNERS[0]):
    return Acknowledged(Instance(Path(f"{uid}.dcm"), uid, digest, patient), calling)


def archives(**changes):
    """An archive and a copy that have what they shall have of `acknowledged()`; `changes` replace or remove objects."""
    derived = Stored("d" * 64, "P1", "1.1")
    first = {"1.1": Stored("a" * 64, "P1", ""), "2.1": derived} | changes.get("first", {})
    copy = {"2.1": derived} | changes.get("copy", {})
    return {"ARCHIVE": {u: s for u, s in first.items() if s}, "COPY": {u: s for u, s in copy.items() if s}}


def broken(found):
    return {rule for rule, how in found.broken.items() if how}


def test_the_verdict_holds_where_everything_arrived_once():
    found = judge([acknowledged()], archives())
    assert found.holds
    assert found.counts["acknowledged instances"] == found.counts["derived at COPY"] == 1


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"first": {"1.1": None}}, "lost"),
        ({"first": {"1.1": Stored("b" * 64, "P1", "")}}, "lost"),
        ({"copy": {"2.1": None}}, "lost"),
        ({"first": {"2.2": Stored("e" * 64, "P1", "1.1")}}, "doubled"),
        ({"first": {"2.1": Stored("d" * 64, "P2", "1.1")}}, "wrong patient"),
        ({"copy": {"1.1": Stored("a" * 64, "P1", "")}}, "not asked for"),
    ],
)
def test_the_verdict_names_what_is_wrong(changes, rule):
    assert broken(judge([acknowledged()], archives(**changes))) == {rule}


def test_two_contents_under_one_uid_break_the_verdict_on_either_side():
    assert broken(judge([acknowledged(), acknowledged(digest="b" * 64)], archives())) == {"lost"}
    assert broken(judge([acknowledged()], archives(), changed={"ARCHIVE": ["1.1"]})) == {"doubled"}


def test_dead_letters_are_counted_and_not_lost():
    found = judge([acknowledged()], archives(first={"1.1": None}), dead=frozenset(["a" * 32]))
    assert found.holds
    assert found.counts["instances in dead letters"] == 1


def test_what_is_passed_on_as_it_came_needs_nothing_derived():
    plain = archives(first={"2.1": None}, copy={"2.1": None})
    assert judge([acknowledged(calling=BULK)], plain).holds
    assert broken(judge([acknowledged()], plain)) == {"lost"}


def inside(*command, **environment):
    """In namespaces of its own, as the rig's own command does."""
    line = ["unshare", "-n", "-m", "-p", "-f", "--mount-proc", "--kill-child", "bash", "-c",
            'ip link set lo up && "$@"; exit $?', "torture", *map(str, command)]  # fmt: skip
    return subprocess.run(
        line, cwd=ROOT, capture_output=True, text=True, check=False, timeout=540, env=os.environ | environment
    )


@pytest.mark.slow
@needs_root
def test_a_lying_archive_without_commitment_and_a_removed_file_are_seen_as_losses(tmp_path):
    if _ONE not in os.environ:
        tests = f"{__file__}::test_a_lying_archive_without_commitment_and_a_removed_file_are_seen_as_losses"
        done = inside(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", tests, **{_ONE: "1"})
        assert done.returncode == 0, done.stdout[-4000:]
        return
    from benchmarks.torture.rig import Rig

    with Rig(tmp_path / "rig", 1, commit=False, idle=4.0) as rig:
        honest, believed, removed = rig.make(2), rig.make(2), rig.make(2)
        assert rig.senders.send(honest, SCANNERS[0])
        wait_until(lambda: [len(archive.objects) for archive in rig.archives.values()] == [4, 2])
        rig.archives["ARCHIVE"].misbehave("lies")
        assert rig.senders.send(believed, SCANNERS[0])
        wait_until(lambda: rig.archives["ARCHIVE"].seen["lies"] == 4)
        rig.archives["ARCHIVE"].heal()
        assert rig.senders.send(removed, SCANNERS[0])
        gone = {instance.digest[:32] for instance in removed}
        for path in rig.node.store.glob("pending/*/*.dcm"):
            assert path.stem.split(".")[1] in gone
            path.unlink()
        result = rig.settle(60)
    lost = " ".join(result.verdict.broken["lost"])
    assert not any(instance.uid in lost for instance in honest)
    assert all(instance.uid in lost for instance in (*believed, *removed))
    assert {rule for rule, how in result.verdict.broken.items() if how} == {"lost"}


def wait_until(true, seconds=60.0):
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@needs_root
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("minutes", "faults"),
    [pytest.param(1.2, 29, marks=pytest.mark.slow), pytest.param(3, 72, marks=pytest.mark.long)],
)
def test_minutes_of_faults_lose_and_double_nothing(tmp_path, minutes, faults):
    report = tmp_path / "torture.md"
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.torture", "--minutes", str(minutes), "--faults", str(faults), "--seed", "7",
         "--folder", tmp_path / "rig", "--report", report],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=1750,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    legs = json.loads(report.with_suffix(".json").read_text())
    assert sum(sum(leg["faults"].values()) for leg in legs) >= 3 * minutes
    assert all(leg["counts"]["acknowledged instances"] > 6 * minutes for leg in legs)
