"""The ledger of a destination, and what it leads to: no network, no clock."""

import pytest

from medenhance_dicom.node.delivery import (
    Ask,
    Dead,
    Done,
    Expire,
    Instance,
    Ledger,
    Send,
    Wait,
    decide,
    pause_after,
    read_ledger,
)
from medenhance_dicom.node.jobfolder import read_lines, write_lines
from medenhance_dicom.node.settings import Work

WORK = Work(attempts=3, first_pause=10, longest_pause=35)
FILES = ["source/a.dcm", "source/b.dcm"]


def sent(name, uid):
    return {"event": "sent", "at": 0.0, "file": name, "class": "1.2", "instance": uid, "status": 0}


BOTH = [sent("source/a.dcm", "1.1"), sent("source/b.dcm", "1.2")]
ASKING = {"event": "asking", "at": 1000.0, "transaction": "2.25.1"}
ASKED = {"event": "asked", "at": 1000.0}


def failed(at=1000.0, **more):
    return {"event": "failed", "at": at, "why": "no answer"} | more


def ledger(*lines):
    made = Ledger()
    for line in lines:
        made.add(line)
    return made


def decided(*lines, now=1000.0, commit=True, files=FILES):
    return decide(ledger(*lines), files, commit=commit, commit_seconds=600, work=WORK, now=now)


def test_the_way_of_a_delivery():
    assert decided() == Send(FILES)
    assert decided(BOTH[0]) == Send(["source/b.dcm"])
    assert decided(*BOTH) == Ask([Instance("1.2", "1.1"), Instance("1.2", "1.2")])
    assert decided(*BOTH, ASKING, ASKED) == Wait(1.0, "the commitment report has not come yet")
    assert isinstance(decided(*BOTH, ASKING), Ask)  # whether the request went out is not known
    committed = {"event": "committed", "at": 0.0, "instances": ["1.1", "1.2"]}
    assert decided(*BOTH, ASKING, ASKED, committed) == Done()
    assert decided(*BOTH, commit=False) == Done()
    assert decided(files=[]) == Done()


def test_only_what_is_left_is_committed():
    lines = [*BOTH, ASKING, ASKED, {"event": "committed", "at": 0.0, "instances": ["1.1"]}]
    assert decided(*lines) == Ask([Instance("1.2", "1.2")])


def test_what_was_not_committed_is_sent_again_after_a_pause():
    refused = {"event": "uncommitted", "at": 1000.0, "instances": ["1.2"], "why": "no such instance"}
    assert decided(*BOTH, ASKING, ASKED, refused, now=1004.0) == Wait(6.0, "no such instance")
    assert decided(*BOTH, ASKING, ASKED, refused, now=1010.0) == Send(["source/b.dcm"])
    # Sending it again works every time, yet it is never committed: that ends too.
    for_ever = [*BOTH, *[refused, BOTH[1]] * 3]
    assert decided(*for_ever, now=9e9) == Dead("3 attempts; the last one: no such instance")


def test_a_report_that_does_not_come_is_asked_for_anew():
    assert decided(*BOTH, ASKING, ASKED, now=1100.0) == Wait(15.0, "the commitment report has not come yet")
    assert decided(*BOTH, ASKING, ASKED, now=1595.0) == Wait(5.0, "the commitment report has not come yet")
    assert decided(*BOTH, ASKING, ASKED, now=1600.0) == Expire("2.25.1")
    expired = {"event": "uncommitted", "at": 1600.0, "instances": [], "why": "no report in time"}
    assert decided(*BOTH, ASKING, ASKED, expired, now=1600.0) == Wait(10.0, "no report in time")
    assert isinstance(decided(*BOTH, ASKING, ASKED, expired, now=1610.0), Ask)


def test_failures_pause_longer_and_end_in_a_dead_letter():
    assert [pause_after(n, WORK) for n in range(6)] == [0.0, 10.0, 20.0, 35.0, 35.0, 35.0]
    assert pause_after(10_000, WORK) == 35.0
    assert decided(failed(), now=1001.0) == Wait(9.0, "no answer")
    assert decided(failed(), now=1010.0) == Send(FILES)
    assert decided(failed(), failed(), now=1010.0) == Wait(10.0, "no answer")
    assert decided(failed(), failed(), failed(), now=9e9) == Dead("3 attempts; the last one: no answer")


def test_progress_gives_fresh_attempts_and_so_does_a_person():
    assert decided(failed(), failed(), BOTH[0], failed(), now=1010.0) == Send(["source/b.dcm"])
    again = {"event": "retried", "at": 0.0}
    assert decided(failed(), failed(), failed(), again) == Send(FILES)
    assert decided(failed(permanent=True)) == Dead("no answer")
    assert decided(failed(permanent=True), again) == Send(FILES)


def test_a_refused_instance_does_not_keep_the_others():
    no = {"event": "refused", "at": 0.0, "file": "source/a.dcm", "status": 0x0122, "why": "SOP class not supported"}
    assert decided(no) == Send(["source/b.dcm"])
    assert decided(no, BOTH[1]) == Ask([Instance("1.2", "1.2")])
    said = Dead("1 instances refused; the last one: SOP class not supported")
    assert decided(no, BOTH[1], commit=False) == said
    assert decided(no, BOTH[1], {"event": "retried", "at": 0.0}) == Send(["source/a.dcm"])


@pytest.mark.parametrize("jump", [-86400.0, 86400.0])
def test_a_clock_that_jumps_ends_pauses_early_and_never_late(jump):
    assert decided(failed(), now=1000.0 + jump) == Send(FILES)
    assert decided(*BOTH, ASKING, ASKED, now=1000.0 + jump) == Expire("2.25.1")


def test_a_delivery_that_gets_more_files_is_not_finished_any_more():
    done = ledger(*BOTH, {"event": "finished", "at": 0.0})
    assert done.finished
    done.add(sent("derived/c.dcm", "1.3"))
    assert not done.finished


def test_a_torn_line_is_left_out_and_swallows_nothing(tmp_path):
    path = tmp_path / "job" / "sent" / "archive.jsonl"
    (tmp_path / "job").mkdir()
    write_lines(path, BOTH)
    with path.open("ab") as file:
        file.write(b'{"event": "sent", "file": "source/c.d')
    write_lines(path, [ASKING])
    assert read_lines(path) == [*BOTH, ASKING]
    assert read_ledger(path).transaction == "2.25.1"
    assert path.stat().st_mode & 0o777 == 0o600
    assert read_ledger(tmp_path / "none.jsonl") == Ledger()
