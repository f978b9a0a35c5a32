"""The audit trail: a chain that shows what was changed, written by several processes, torn by crashes."""

import json
import multiprocessing
import os

import pytest
from typer.testing import CliRunner

from medenhance_dicom import audit
from medenhance_dicom.audit import Anchor, Audit, examine, read_anchors, verify, write_anchor
from medenhance_dicom.cli import app
from medenhance_dicom.errors import InputError, OutputError


def trail(tmp_path, lines=0):
    written = Audit(tmp_path / "audit" / "audit.jsonl", clock=lambda: 1_700_000_000.25)
    for n in range(lines):
        written.append("sent", job=f"job{n % 2}", instances=n)
    return written


def test_a_line_has_number_time_facts_and_the_digest_before(tmp_path):
    written = trail(tmp_path)
    first = written.append("sealed", job="a", instances=3)
    second = written.append("sent", job="a", destination="archive")
    assert first["n"] == 1
    assert first["previous"] == ""
    assert first["time"] == "2023-11-14T22:13:20.250+00:00"
    assert second["previous"] == first["digest"]
    assert [json.loads(line) for line in written.path.read_text().splitlines()] == [first, second]
    assert verify(written.path) is None


def test_the_digest_is_of_the_canonical_line(tmp_path):
    import hashlib

    line = trail(tmp_path).append("sealed", job="a")
    text = '{"event":"sealed","job":"a","n":1,"previous":"","time":"2023-11-14T22:13:20.250+00:00"}'
    assert line["digest"] == hashlib.sha256(text.encode()).hexdigest()


def test_only_the_owner_may_read_it(tmp_path):
    written = trail(tmp_path, 1)
    assert written.path.stat().st_mode & 0o777 == 0o600
    assert written.path.parent.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("number", [1, 3, 5])
def test_a_changed_line_is_found(tmp_path, number):
    written = trail(tmp_path, 5)
    lines = written.path.read_text().splitlines(keepends=True)
    lines[number - 1] = lines[number - 1].replace('"sent"', '"lost"')
    written.path.write_text("".join(lines))
    assert verify(written.path) == number


def test_a_removed_a_swapped_and_a_copied_line_are_found(tmp_path):
    written = trail(tmp_path, 5)
    lines = written.path.read_text().splitlines(keepends=True)
    for changed, bad in (
        (lines[:2] + lines[3:], 3),
        ([lines[0], lines[2], lines[1], *lines[3:]], 2),
        (lines[:3] + lines[2:], 4),
        (lines[1:], 1),
        ([*lines[:2], "\n", *lines[2:]], 3),
        ([*lines[:2], "not json!\n", *lines[2:]], 3),
    ):
        written.path.write_text("".join(changed))
        assert verify(written.path) == bad


def test_a_line_forged_with_its_own_digest_breaks_the_next(tmp_path):
    written = trail(tmp_path, 3)
    lines = [json.loads(line) for line in written.path.read_text().splitlines()]
    del lines[1]["digest"]
    lines[1]["instances"] = 99
    lines[1]["digest"] = audit._digest(lines[1])
    written.path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert verify(written.path) == 3


@pytest.mark.parametrize("cut", [1, 30, 10_000])
def test_a_torn_line_stays_and_the_next_one_vouches_for_it(tmp_path, cut):
    written = trail(tmp_path, 3)
    kept = written.path.read_bytes()
    whole = kept.splitlines(keepends=True)
    torn = whole[-1][: -min(cut, len(whole[-1]) - 1)]  # cut 1: all but its newline
    written.path.write_bytes(b"".join(whole[:-1]) + torn)
    assert verify(written.path) == 3
    line = written.append("restarted")
    assert line["n"] == 3
    assert written.append("sent")["n"] == 4
    assert verify(written.path) is None
    assert torn in written.path.read_bytes()
    changed = written.path.read_bytes().replace(torn + b"!", b"x" + torn[1:] + b"!")
    written.path.write_bytes(changed)
    assert verify(written.path) == 3


@pytest.mark.parametrize("line", [
    b"[" * 100_000, b"[]", bytes(300), b'{"n":"1","event":"a","previous":"","digest":""}',
    b'{"n":1,"event":"a","previous":"","digest":[]}', b'{"n":1e400,"event":"a","previous":"","digest":""}',
])  # fmt: skip
def test_a_line_of_another_kind_is_found_and_stops_nobody(line, tmp_path):
    trail = Audit(tmp_path / "audit.jsonl")
    trail.append("one")
    with trail.path.open("ab") as file:
        file.write(line + b"\n")
    assert trail.append("two")["n"] == 2
    assert [record["event"] for record in trail.events()] == ["one", "two"]
    assert (examine(trail.path).state, examine(trail.path).line) == ("broken", 2)


def test_a_line_longer_than_a_block_is_found_from_behind(tmp_path):
    written = trail(tmp_path, 2)
    written.append("long", why="x" * 3 * audit._BLOCK)
    assert written.append("sent")["n"] == 4
    assert verify(written.path) is None


def _write_many(path, count):
    trail = Audit(path)
    for n in range(count):
        trail.append("sent", job=str(os.getpid()), instances=n)


def test_several_processes_keep_one_chain(tmp_path):
    path = tmp_path / "audit.jsonl"
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_write_many, args=(path, 25)) for _ in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert verify(path) is None
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["n"] for line in lines] == list(range(1, 101))
    for pid in {line["job"] for line in lines}:
        assert [line["instances"] for line in Audit(path).events(pid)] == list(range(25))


def test_a_line_that_may_wait_is_on_the_disk_with_the_next(tmp_path, monkeypatch):
    flushed = []
    monkeypatch.setattr(audit.os, "fsync", lambda handle: flushed.append(os.fstat(handle).st_size))
    written = trail(tmp_path, 1)
    before = len(flushed)
    written.append("delivered", durable=False, job="job1")
    assert len(flushed) == before
    assert [line["event"] for line in written.events("job1")] == ["delivered"]
    written.append("done", job="job1")
    assert flushed[before:] == [written.path.stat().st_size]
    assert verify(written.path) is None


def test_events_of_one_job(tmp_path):
    written = trail(tmp_path, 6)
    written.append("note", why="job1 is mentioned")
    assert [line["instances"] for line in written.events("job1")] == [1, 3, 5]
    assert len(list(written.events())) == 7
    assert list(Audit(tmp_path / "none.jsonl").events()) == []
    assert verify(tmp_path / "none.jsonl") is None


def test_a_full_disk_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    written = trail(tmp_path, 2)
    before = written.path.read_bytes()
    real = os.write

    def half(handle, data):
        monkeypatch.setattr(os, "write", full)
        return real(handle, data[: len(data) // 2])

    def full(handle, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", half)
    with pytest.raises(OutputError, match="No space left"):
        written.append("sent")
    monkeypatch.undo()
    assert written.path.read_bytes() == before
    assert written.append("sent")["n"] == 3
    assert verify(written.path) is None


# ------------------------------------------------------------------------------------------------ anchors


@pytest.fixture
def anchored(tmp_path):
    """A trail of five lines and the anchor that it kept on the way."""
    written = Audit(tmp_path / "store" / "audit" / "audit.jsonl", anchor=tmp_path / "elsewhere" / "anchor")
    for n in range(5):
        written.append("sent", job="a", instances=n)
    return written, tmp_path / "elsewhere" / "anchor"


def test_an_anchor_follows_what_is_on_the_disk(anchored):
    written, anchor = anchored
    last = written.append("sent")
    assert read_anchors(anchor) == [Anchor(6, last["digest"])]
    written.append("delivered", durable=False)
    assert read_anchors(anchor) == [Anchor(6, last["digest"])]
    assert anchor.stat().st_mode & 0o777 == 0o600
    found = examine(written.path, anchor)
    assert (found.state, found.lines) == ("whole", 7)


def _cut(path):
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-2]))


def _forge(path):
    """The whole trail anew, with other facts: a chain that holds."""
    path.unlink()
    forged = Audit(path)
    for n in range(6):
        forged.append("sent", job="a", instances=n + 1)


@pytest.mark.parametrize(
    ("change", "alone", "with_anchor"),
    [
        (_cut, "whole", "cut"),
        (lambda path: path.write_bytes(b""), "empty", "empty"),
        (lambda path: path.unlink(), "none", "deleted"),
        (_forge, "whole", "rewritten"),
        (lambda path: path.write_bytes(path.read_bytes()[:-9]), "torn", "cut"),
        (lambda path: path.write_bytes(path.read_bytes() + b'{"n": 6'), "torn", "torn"),
        (
            lambda path: path.write_bytes(path.read_bytes().replace(b'"instances": 1', b'"instances": 7')),
            *["broken"] * 2,
        ),
        (lambda path: None, "whole", "whole"),
    ],
)
def test_what_an_anchor_shows(anchored, change, alone, with_anchor):
    written, anchor = anchored
    change(written.path)
    assert examine(written.path).state == alone
    assert examine(written.path, anchor).state == with_anchor


def test_a_trail_that_was_cut_and_goes_on_is_found(anchored):
    written, _ = anchored
    earlier = examine(written.path).end
    _cut(written.path)
    for _ in range(4):
        written.append("sent")
    found = examine(written.path, [earlier])
    assert (found.state, found.line) == ("rewritten", 5)


def test_an_anchor_that_cannot_be_written_loses_no_line(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    written = Audit(tmp_path / "audit.jsonl", anchor=tmp_path / "file" / "anchor")
    assert written.append("sent")["n"] == 1
    assert "anchor" in caplog.text
    assert verify(written.path) is None


@pytest.mark.parametrize("content", ["", "none\n", '{"n": 0, "digest": ""}', '{"n": "x", "digest": "y"}', "[]"])
def test_a_file_that_is_no_anchor(tmp_path, content):
    (tmp_path / "anchor").write_text(content)
    with pytest.raises(InputError, match="no anchor"):
        read_anchors(tmp_path / "anchor")


def test_a_shorter_anchor_leaves_nothing_of_a_longer_one(tmp_path):
    (tmp_path / "anchor").write_text("x" * 999)
    write_anchor(tmp_path / "anchor", Anchor(7, "ab" * 32))
    write_anchor(tmp_path / "anchor", Anchor(12345678, "cd" * 32))
    assert read_anchors(tmp_path / "anchor") == [Anchor(12345678, "cd" * 32)]


def _write_anchored(path, anchor, count):
    trail = Audit(path, anchor=anchor)
    for _ in range(count):
        trail.append("sent", job=str(os.getpid()))


def test_several_processes_keep_one_anchor_while_it_is_verified(tmp_path):
    path, anchor = tmp_path / "audit.jsonl", tmp_path / "anchor"
    Audit(path, anchor=anchor).append("started")
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_write_anchored, args=(path, anchor, 30)) for _ in range(3)]
    for writer in writers:
        writer.start()
    seen = {examine(path, anchor).state}
    while any(writer.is_alive() for writer in writers):
        seen.add(examine(path, anchor).state)
    for writer in writers:
        writer.join()
    assert seen == {"whole"}
    assert read_anchors(anchor) == [examine(path).end]
    assert examine(path).lines == 91


def test_the_command_says_so_with_its_exit_code(anchored, tmp_path):
    written, anchor = anchored
    store = written.path.parent.parent

    def verified(*arguments):
        done = CliRunner().invoke(app, ["audit", "verify", *map(str, arguments), "--json"])
        return done.exit_code, json.loads(done.stdout)["state"]

    assert verified("--store", store) == (0, "whole")
    assert verified("--store", written.path, "--anchor", anchor) == (0, "whole")
    kept = CliRunner().invoke(app, ["audit", "anchor", "--store", str(store), "--anchor", str(tmp_path / "mine")])
    assert kept.exit_code == 0, kept.output
    assert read_anchors(tmp_path / "mine") == read_anchors(anchor)
    _cut(written.path)
    assert verified("--store", store) == (0, "whole")
    assert verified("--store", store, "--anchor", anchor) == (13, "cut")
    assert verified("--store", store, "--anchor", tmp_path / "mine") == (13, "cut")
    assert CliRunner().invoke(app, ["audit", "anchor", "--store", str(store), "--anchor", str(anchor)]).exit_code == 13
    written.path.write_bytes(b"")
    assert verified("--store", store) == (13, "empty")
    written.path.unlink()
    assert verified("--store", store) == (13, "deleted")  # its folder is there
    assert verified("--store", tmp_path / "none") == (3, "none")


def test_the_command_takes_store_and_anchor_from_the_configuration(anchored, tmp_path):
    written, _ = anchored
    config = tmp_path / "node.toml"
    config.write_text('store = "store"\n[audit]\nanchor = "elsewhere/anchor"\n')
    runner = CliRunner()
    assert runner.invoke(app, ["audit", "verify", "--config", str(config)]).exit_code == 0
    _cut(written.path)
    done = runner.invoke(app, ["audit", "verify", "--config", str(config)])
    assert done.exit_code == 13
    assert "CUT" in done.stdout
