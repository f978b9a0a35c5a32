"""Forty seconds of malformed DICOM and HTTP leave the node as it was; and the fuzzer sees what it is to see."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.fuzz import chance, pdus, requests
from benchmarks.fuzz.chance import Chance, Input
from benchmarks.fuzz.watch import Watch
from tests.namespaces import may_mount

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("make", [pdus.make, requests.make])
def test_an_input_follows_from_its_seed_and_survives_its_file(make):
    made = [make(Chance(seed)) for seed in range(60)]
    assert made == [make(Chance(seed)) for seed in range(60)]
    assert len({what.sends for what in made}) > 55
    assert [Input.of_line(what.line()) for what in made] == made


def test_nothing_lies_at_rate_zero():
    honest = Chance(1)
    assert honest.some([b"a", b"b"]) == [b"a", b"b"]
    assert honest.scratch(b"abc") == b"abc"
    assert {honest.length(5, 255) for _ in range(50)} == {5}
    liar = Chance(1)
    liar.rate = 0.9
    assert len({liar.length(5, 255) for _ in range(50)}) > 5


def test_what_may_not_be_logged_is_seen_once(tmp_path):
    watch = Watch(tmp_path, 1)
    audit = watch.node.store / "audit" / "audit.jsonl"
    audit.parent.mkdir(parents=True)
    audit.write_text('{"event": "received", "calling_ae": "FUZZER"}\n')
    watch.node.log.write_text("running\n")
    assert not list(watch.words())
    audit.write_text(audit.read_text() + f'{{"instance": "{chance.ROOT}.1"}}\n')
    watch.node.log.write_text(f"running\n{chance.MARKER}\nTraceback (most recent call last):\na error b[7]: broken\n")
    assert [rule for rule, _ in watch.words()] == [
        "FuZZ in node.log", "Traceback in node.log", f"{chance.ROOT} in audit.jsonl",
    ]  # fmt: skip
    assert watch.errors == {"broken": 1}
    assert not list(watch.words())


@pytest.mark.parametrize(
    ("refused", "answer", "wrong"),
    [
        (False, b"HTTP/1.1 200 OK\r\n", False),
        (True, b"HTTP/1.1 200 OK\r\n", True),
        (True, b"HTTP/1.1 415 Unsupported Media Type\r\n", False),
        (False, b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 500 Internal Server Error\r\n", True),
        (False, b"", False),
    ],
)
def test_answers_are_judged(tmp_path, refused, answer, wrong):
    assert bool(Watch(tmp_path, 1).judge(Input("x", "http", (b"",), refused=refused), answer)) is wrong


@pytest.mark.skipif(not may_mount(), reason="no right to make namespaces")
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "seconds", [pytest.param(15, marks=pytest.mark.slow), pytest.param(120, marks=pytest.mark.long)]
)
def test_nothing_is_found(tmp_path, seconds):
    report = tmp_path / "fuzz.md"
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.fuzz", "--seconds", str(seconds), "--seed", "7", "--report", report],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert "No finding." in report.read_text()
