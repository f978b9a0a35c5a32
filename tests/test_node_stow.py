"""STOW-RS to a server of our own that parses the body by itself and answers as it is told."""

from __future__ import annotations

import email.parser
import email.policy
import http.server
import io
import json
import threading
from pathlib import Path

import pydicom
import pytest

from medenhance_dicom.errors import ConfigurationError, PeerError
from medenhance_dicom.node import stow
from medenhance_dicom.node.settings import Destination
from medenhance_dicom.node.stow import store_rs
from medenhance_dicom.node.wire import server_tls
from tests.dicom_peers import authority, tls_files


class Server:
    """Stores what it gets; `answer(uids)` gives status and body."""

    def __init__(self, answer=None):
        self.bodies, self.headers = [], []
        self.answer = answer or (lambda uids: (200, {"00081199": sequence(uids)}))
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                outer.headers.append(dict(self.headers))
                head = f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode()
                message = email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(head + body)
                parts = [part.get_payload(decode=True) for part in message.iter_parts()]
                outer.bodies.append(parts)
                uids = [str(pydicom.dcmread(io.BytesIO(part)).SOPInstanceUID) for part in parts]
                status, answer = outer.answer(uids)
                text = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/dicom+json")
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, *_):
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.02})
        self.thread.start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.http.shutdown()
        self.http.server_close()
        self.thread.join()

    def destination(self, **more):
        return Destination(name="web", stow=f"http://127.0.0.1:{self.http.server_address[1]}/studies", **more)


def sequence(uids, **reasons):
    tag = {"warning": "00081196", "failure": "00081197"}
    extra = {tag[name]: {"vr": "US", "Value": [value]} for name, value in reasons.items()}
    return {"vr": "SQ", "Value": [{"00081155": {"vr": "UI", "Value": [uid]}, **extra} for uid in uids]}


@pytest.fixture
def files(samples):
    return sorted(path for path in (samples / "study").rglob("*") if path.is_file())


def test_the_bytes_arrive(files):
    with Server() as server:
        report = store_rs(files, server.destination())
    assert [item.path for item in report.sent] == files
    assert not report.failed
    assert server.bodies == [[path.read_bytes() for path in files]]
    assert server.headers[0]["Accept"] == "application/dicom+json"
    assert 'type="application/dicom"' in server.headers[0]["Content-Type"]


def test_large_batches_are_split(files, monkeypatch):
    monkeypatch.setattr(stow, "_INSTANCES", 2)
    with Server() as server:
        report = store_rs(files, server.destination())
    assert [len(parts) for parts in server.bodies] == [2] * (len(files) // 2) + [1] * (len(files) % 2)
    assert len(report.sent) == len(files)


def test_each_instance_counts_by_itself(files):
    def answer(uids):
        return 202, {
            "00081199": {
                "vr": "SQ",
                "Value": [*sequence(uids[:1])["Value"], *sequence(uids[1:2], warning=0xB000)["Value"]],
            },
            "00081198": {
                "vr": "SQ",
                "Value": [
                    *sequence(uids[2:3], failure=0x0122)["Value"],
                    *sequence(uids[3:4], failure=0xA700)["Value"],
                    *sequence(uids[4:5], failure=0x0111)["Value"],
                ],
            },
        }

    with Server(answer) as server:
        report = store_rs(files[:6], server.destination())
    assert [(item.path, item.status) for item in report.sent] == [
        (files[0], 0),
        (files[1], 0xB000),
        (files[4], 0x0111),
    ]
    assert [(item.path, item.status, item.permanent) for item in report.failed] == [
        (files[2], 0x0122, True),
        (files[3], 0xA700, False),
        (files[5], None, False),  # in neither list
    ]


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b'{"00081199": 3}', b"[1]", b"{}", b"null"])
def test_an_answer_that_says_nothing_is_no_success(files, body):
    with Server(lambda uids: (200, body)) as server:
        report = store_rs(files[:2], server.destination())
    assert not report.sent
    assert [(item.status, item.permanent) for item in report.failed] == [(None, False)] * 2


def test_refused_as_a_whole_with_reasons(files):
    with Server(lambda uids: (409, {"00081198": sequence(uids, failure=0xA900)})) as server:
        report = store_rs(files[:1], server.destination())
    assert [item.permanent for item in report.failed] == [True]


@pytest.mark.parametrize(
    ("status", "permanent"),
    [(401, True), (403, True), (404, True), (415, True), (307, True), (429, False), (503, False)],
)
def test_http_errors(files, status, permanent):
    with Server(lambda uids: (status, b"secret words")) as server, pytest.raises(PeerError) as caught:
        store_rs(files[:1], server.destination())
    assert caught.value.permanent is permanent
    assert str(caught.value) == f"web answers HTTP {status}"


def test_a_later_request_that_fails_leaves_the_first_one_counted(files, monkeypatch):
    monkeypatch.setattr(stow, "_INSTANCES", 1)
    answers = [(200, None), (503, b"")]

    def answer(uids):
        status, body = answers.pop(0)
        return status, body if body is not None else {"00081199": sequence(uids)}

    with Server(answer) as server:
        report = store_rs(files[:2], server.destination())
    assert [item.path for item in report.sent] == files[:1]
    assert [item.permanent for item in report.failed] == [False]


def test_nobody_there(files):
    with Server() as server:
        there = server.destination()
    with pytest.raises(PeerError, match="cannot be reached"):
        store_rs(files[:1], there)


def test_authorization(files, tmp_path):
    (tmp_path / "token").write_text("Bearer abc\n")
    with Server() as server:
        store_rs(files[:1], server.destination(authorization_file=tmp_path / "token"))
        with pytest.raises(ConfigurationError):
            store_rs(files[:1], server.destination(authorization_file=tmp_path / "missing"))
    assert [headers["Authorization"] for headers in server.headers] == ["Bearer abc"]


def test_files_that_are_not_dicom_fail_here(tmp_path):
    (tmp_path / "text").write_text("hello")
    report = store_rs([tmp_path / "text"], Destination(name="web", stow="http://127.0.0.1:1/studies"))
    assert [item.permanent for item in report.failed] == [True]
    assert isinstance(report.failed[0].path, Path)


@pytest.mark.parametrize(("name", "reached"), [("127.0.0.1", True), ("other.test", False)])
def test_a_web_server_has_to_be_the_one_that_its_certificate_names(files, tmp_path, name, reached):
    site = ("Site", *authority("Site"))
    with Server() as server:
        context = server_tls(tls_files(tmp_path, "server", site, names=[name]))
        server.http.socket = context.wrap_socket(server.http.socket, server_side=True)
        there = server.destination(tls=tls_files(tmp_path, "client", site))
        there = there.model_copy(update={"stow": there.stow.replace("http:", "https:")})
        if reached:
            assert len(store_rs(files[:1], there).sent) == 1
        else:
            with pytest.raises(PeerError, match="cannot be reached"):
                store_rs(files[:1], there)
            assert not server.bodies
