"""Health, metrics and STOW-RS: every status code, limits, the token, and that nothing unfinished stays."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import contextmanager, suppress

import httpx
import pytest
from fastapi.testclient import TestClient

from medenhance_dicom.errors import ConfigurationError
from medenhance_dicom.node.http import make_app, make_server, read_token
from medenhance_dicom.node.settings import HTTP, Listener, NodeSettings
from medenhance_dicom.node.upload import Stored, Upload

MULTIPART = 'multipart/related; type="application/dicom"; boundary=b0'
URL = "/dicom-web/studies"
SECONDS = 0.6


def body(*parts: bytes, content_type: str = "application/dicom") -> bytes:
    return b"".join(b"--b0\r\nContent-Type: %s\r\n\r\n%s\r\n" % (content_type.encode(), p) for p in parts) + b"--b0--"


class Node:
    """The application with an `accept` that keeps the bytes; each part's first byte says how it is taken."""

    def __init__(self, folder, **http):
        self.folder, self.taken, self.studies = folder, [], []
        self.problems, self.busy, self.page, self.seconds = [], None, b"up 1\n", SECONDS
        self.settings = NodeSettings(store=folder, http=HTTP(**{"stow": True, "maximum_body_bytes": 10_000} | http))
        app = make_app(
            lambda: self.settings, incoming=folder, intake=self.intake, problems=lambda: self.problems,
            busy=lambda: self.busy, metrics=lambda: (self.page, "text/plain"),
        )  # fmt: skip
        self.app, self.client = app, TestClient(app)

    @contextmanager
    def intake(self, study):
        yield lambda path: self.accept(path, study)

    def accept(self, path, study):
        data = path.read_bytes()
        path.unlink()
        self.taken.append(data)
        self.studies.append(study)
        status = {b"c": 0x0111, b"f": 0xA700, b"q": 0xC000}.get(data[:1], 0)
        return Stored(status) if status == 0xC000 else Stored(status, "1.2", f"1.3.{len(self.taken)}")

    def post(self, content, url=URL, content_type=MULTIPART, **headers):
        return self.client.post(url, content=content, headers={"Content-Type": content_type} | headers)

    def left(self):
        return list(self.folder.iterdir())


@pytest.fixture
def node(tmp_path):
    return Node(tmp_path)


def test_parts_arrive_whole_and_are_listed_as_stored(node):
    data = [b"\r\n--b\r\n" + bytes(range(256)), b"two"]
    answer = node.post(body(*data), url=f"{URL}/1.2.3")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("application/dicom+json")
    assert node.taken == data
    assert node.studies == ["1.2.3", "1.2.3"]
    module = answer.json()
    assert [i["00081155"]["Value"] for i in module["00081199"]["Value"]] == [["1.3.1"], ["1.3.2"]]
    assert module["00081199"]["Value"][0]["00081150"] == {"vr": "UI", "Value": ["1.2"]}
    assert "00081198" not in module
    assert node.left() == []


def test_one_instance_needs_no_multipart(node):
    assert node.post(b"alone", content_type="application/dicom").status_code == 200
    assert node.taken == [b"alone"]


def test_a_body_may_come_in_blocks(node):
    whole = body(b"x" * 3000, b"y" * 3000)
    assert node.post(whole[i : i + 7] for i in range(0, len(whole), 7)).status_code == 200
    assert node.taken == [b"x" * 3000, b"y" * 3000]


@pytest.mark.parametrize(
    ("parts", "status", "reasons", "other"),
    [
        ((b"one", b"conflict"), 202, [[0x0111]], []),
        ((b"conflict",), 409, [[0x0111]], []),
        ((b"full",), 503, [[0xA700]], []),
        ((b"full", b"conflict"), 409, [[0xA700], [0x0111]], []),
        ((b"one", b"quarantined"), 202, [], [[0xC000]]),
    ],
)
def test_failures_are_listed_with_their_reason(node, parts, status, reasons, other):
    answer = node.post(body(*parts))
    assert answer.status_code == status
    module = answer.json()
    assert [i["00081197"]["Value"] for i in module.get("00081198", {"Value": []})["Value"]] == reasons
    assert [i["00081197"]["Value"] for i in module.get("0008119A", {"Value": []})["Value"]] == other


@pytest.mark.parametrize(
    ("content", "content_type", "status"),
    [
        (body(b"x"), "multipart/form-data; boundary=b0", 415),
        (body(b"x"), 'multipart/related; type="application/dicom+json"; boundary=b0', 415),
        (body(b"x", content_type="image/png"), MULTIPART, 415),
        (body(b"x"), "application/zip", 415),
        (body(b"x"), 'multipart/related; type="application/dicom"', 400),
        (b"--b0--", MULTIPART, 400),
        (body(b"x")[:-4], MULTIPART, 400),
        (b"", "application/dicom", 400),
        (b"--b0\r\nContent-Type: application/dicom\r\n\r\n" + b"x" * 500, MULTIPART, 400),
        (body(b"x" * 11_000), MULTIPART, 413),
    ],
)
def test_bodies_that_are_refused_leave_nothing(node, content, content_type, status):
    for given in (content, iter([content])):  # with and without Content-Length
        assert node.post(given, content_type=content_type).status_code == status
    assert node.taken == []
    assert node.left() == []


def test_whole_parts_before_a_broken_one_are_kept(node):
    assert node.post(body(b"one", b"two")[:-9]).status_code == 400
    assert node.taken == [b"one"]
    assert node.left() == []


def test_too_many_parts(node, monkeypatch):
    monkeypatch.setattr("medenhance_dicom.node.upload.MAXIMUM_PARTS", 2)
    assert node.post(body(b"1", b"2")).status_code == 200
    assert node.post(body(b"1", b"2", b"3")).status_code == 413


def test_a_full_disk_fails_the_part_and_leaves_no_file(tmp_path):
    upload = Upload(MULTIPART, tmp_path, lambda path: Stored(0, "1.2", "1.3"), has_room=lambda: True)
    upload.feed(b"--b0\r\n\r\n")
    upload._file.close()
    upload._file = (tmp_path / upload._file.name).open("rb")  # writing to it fails
    upload.feed(b"x" * 100 + b"\r\n--b0--")
    upload.close()
    assert upload.response()[0] == 503
    assert list(tmp_path.iterdir()) == []


def test_the_space_is_looked_at_while_a_part_comes_in(tmp_path, monkeypatch):
    monkeypatch.setattr("medenhance_dicom.node.upload.GUARD_BYTES", 1000)
    free = iter([True, False])
    upload = Upload(MULTIPART, tmp_path, lambda path: Stored(0, "1.2", "1.3"), has_room=lambda: next(free))
    upload.feed(b"--b0\r\n\r\n")
    for _ in range(5):
        upload.feed(b"x" * 800)
    (path,) = tmp_path.iterdir()
    assert path.stat().st_size == 0
    upload.feed(b"\r\n--b0--")
    upload.close()
    assert [result.status for result in upload.results] == [0xA700]
    assert not list(tmp_path.iterdir())


def test_the_token_is_asked_for(tmp_path):
    (tmp_path / "token").write_text("s3cret\n")
    (tmp_path / "spool").mkdir()
    node = Node(tmp_path / "spool", token_file=tmp_path / "token", bind="0.0.0.0")
    for wrong in ({}, {"Authorization": "Bearer other"}, {"Authorization": "Basic s3cret"}, {"Authorization": ""}):
        answer = node.post(body(b"x"), **wrong)
        assert answer.status_code == 401
        assert answer.headers["WWW-Authenticate"] == "Bearer"
    assert node.taken == []
    assert node.post(body(b"x"), Authorization="Bearer s3cret").status_code == 200
    (tmp_path / "token").unlink()
    assert node.post(body(b"x"), Authorization="Bearer s3cret").status_code == 401


def test_stow_outside_loopback_does_not_start_without_a_token(tmp_path):
    for bind in ("0.0.0.0", "::", "10.1.2.3", "node.example"):
        with pytest.raises(ConfigurationError, match="token_file"):
            Node(tmp_path, bind=bind)
    assert read_token(HTTP(bind="0.0.0.0", stow=False)) is None
    for bind in ("127.0.0.1", "127.9.9.9", "::1", "localhost"):
        assert read_token(HTTP(bind=bind, stow=True)) is None
    (tmp_path / "token").write_text(" \n")
    with pytest.raises(ConfigurationError, match="empty"):
        read_token(HTTP(stow=True, token_file=tmp_path / "token"))
    with pytest.raises(ConfigurationError, match="cannot be read"):
        read_token(HTTP(stow=True, token_file=tmp_path / "absent"))


def test_stow_that_is_off_is_not_there(tmp_path):
    assert Node(tmp_path, stow=False).post(body(b"x")).status_code == 404


def test_nothing_is_taken_while_busy(node):
    node.busy = "draining"
    answer = node.post(body(b"x"))
    assert answer.status_code == 503
    assert answer.headers["Retry-After"]
    assert node.taken == []


def test_health_and_metrics(node):
    assert node.client.get("/healthz").status_code == 200
    assert node.client.get("/readyz").json() == {"ready": True, "problems": []}
    node.problems = ["disk: 1 GB free, 2 GB are kept back"]
    answer = node.client.get("/readyz")
    assert (answer.status_code, answer.json()["ready"]) == (503, False)
    assert node.client.get("/healthz").status_code == 200
    assert node.client.get("/metrics").text == "up 1\n"
    for absent in ("/docs", "/openapi.json", "/dicom-web/studies"):
        assert node.client.get(absent).status_code in (404, 405)


# ---------------------------------------------------------------- connections that do not get on

HEAD = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.fixture
def served(node):
    """The application behind its server; the port."""
    node.settings = node.settings.model_copy(update={"listener": Listener(socket_timeout=SECONDS)})
    server = make_server(node.app, acse_timeout=lambda: node.seconds)
    listening = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
    thread.start()
    yield listening.getsockname()[1]
    server.should_exit = True
    thread.join(60)


def connected(port):
    return socket.create_connection(("127.0.0.1", port), timeout=60)


def healthy(port):
    return httpx.get(f"http://127.0.0.1:{port}/healthz", timeout=60, trust_env=False).status_code == 200


def answers(sock, count):
    got = b""
    while got.count(b'{"status":"alive"}') < count:
        block = sock.recv(65536)
        assert block, got
        got += block


def seconds_until_cut(sock, drip=b"", pause=0.05, most=60.0):
    """Until the other side closes, while a byte of `drip` goes out every so often; `most` where it does not."""
    began = time.monotonic()
    sock.settimeout(pause)
    with suppress(ConnectionError):
        for byte in [drip[i : i + 1] for i in range(len(drip))] or [b""] * 10_000:
            if time.monotonic() - began > most:
                return most
            if byte:
                sock.send(byte)
            with suppress(TimeoutError):
                if not sock.recv(65536):
                    break
    return time.monotonic() - began


def test_silent_connections_and_dripping_heads_are_cut_off(served):
    silent = [connected(served) for _ in range(3)]
    assert SECONDS * 0.8 < seconds_until_cut(connected(served), b"GET /healthz HTTP/1.1\r\nX-Long: " + b"x" * 800) < 20
    for sock in silent:
        assert seconds_until_cut(sock) < 20


def test_more_silent_connections_than_the_limit_keep_nobody_out(served, node):
    node.seconds = 60.0  # it is not the time that lets others in
    silent = [connected(served) for _ in range(80)]
    dripping = connected(served)
    dripping.send(b"GET /healthz HT")
    assert healthy(served)
    assert seconds_until_cut(silent[0]) < 20
    assert seconds_until_cut(dripping, most=0.2) == 0.2  # a younger one: it has its time


def test_many_silent_connections_are_all_cut_off(served):
    silent = [connected(served) for _ in range(80)]
    dripping = connected(served)
    dripping.send(b"GET /healthz HT")
    time.sleep(SECONDS + 0.2)
    assert all(seconds_until_cut(sock) < 20 for sock in [*silent, dripping])
    assert healthy(served)


@pytest.mark.slow
def test_a_kept_alive_connection_may_ask_again_and_may_not_drip(served):
    with connected(served) as sock:
        for _ in range(3):
            sock.sendall(HEAD)
            answers(sock, 1)
            time.sleep(SECONDS * 0.6)  # longer, all told, than a head may take
        assert SECONDS * 0.8 < seconds_until_cut(sock, HEAD[:-1] + b"X: " + b"x" * 800) < 20


def test_a_request_in_two_pieces_and_two_at_once_are_answered(served):
    with connected(served) as sock:
        sock.sendall(HEAD[:20])
        time.sleep(0.1)
        sock.sendall(HEAD[20:] + HEAD)
        answers(sock, 2)


@pytest.mark.slow
def test_a_long_request_outlives_the_time_for_its_head(served, node):
    data = b"x" * 8000
    whole = body(data)
    with connected(served) as sock:
        head = f"POST {URL} HTTP/1.1\r\nHost: x\r\nContent-Type: {MULTIPART}\r\nContent-Length: {len(whole)}\r\n\r\n"
        sock.sendall(head.encode())
        for i in range(0, len(whole), 1024):
            sock.sendall(whole[i : i + 1024])
            time.sleep(SECONDS / 4)
        assert sock.recv(65536).startswith(b"HTTP/1.1 200 OK")
    assert node.taken == [data]


def test_a_dripping_body_is_refused_and_leaves_nothing(served, node):
    with connected(served) as sock:
        sock.sendall(
            f"POST {URL} HTTP/1.1\r\nHost: x\r\nContent-Type: application/dicom\r\nContent-Length: 900\r\n\r\n".encode()
        )
        got, began = b"", time.monotonic()
        sock.settimeout(0.05)
        while not got and time.monotonic() - began < 60:
            sock.send(b"x")  # often enough for a limit on each block
            with suppress(TimeoutError):
                got = sock.recv(65536)
        assert b"408" in got.split(b"\r\n")[0]
        assert time.monotonic() - began < 20
    assert (node.taken, node.left()) == ([], [])


@pytest.mark.parametrize(("url", "status"), [("/absent", b"404"), ("/healthz", b"405"), (URL, b"413")])
def test_the_body_of_an_answered_request_may_not_drip(served, url, status):
    with connected(served) as sock:
        sock.sendall(f"POST {url} HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n".encode())
        assert status in sock.recv(65536).split(b"\r\n")[0]
        assert SECONDS * 0.8 < seconds_until_cut(sock, b"x" * 800) < 20


def test_who_does_not_read_the_answer_is_cut_off(served, node):
    node.page = b"x" * (16 << 20)
    with connected(served) as sock:
        sock.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        time.sleep(SECONDS + 0.3)
        got = 0
        while block := sock.recv(1 << 20):
            got += len(block)
        assert got < len(node.page)
    assert len(httpx.get(f"http://127.0.0.1:{served}/metrics", timeout=60, trust_env=False).content) == len(node.page)
