"""Instances of a DICOM peer: found by C-FIND, brought by C-GET, else by C-MOVE to a listener of ours."""

from __future__ import annotations

import contextlib
import re
import secrets
import shutil
from collections.abc import Iterator, Sequence
from datetime import date, timedelta
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydicom import Dataset
from pynetdicom import evt

from medenhance_dicom.errors import InputError, OutputError, PeerError
from medenhance_dicom.node import query
from medenhance_dicom.node.association import MAXIMUM_CONTEXTS, NoContextError
from medenhance_dicom.node.jobfolder import flush
from medenhance_dicom.node.settings import Destination, TLSFiles
from medenhance_dicom.node.sources.judging import text_of
from medenhance_dicom.node.sources.queried import (
    INSTANCE,
    INSTANCE_FACTS,
    SERIES,
    SERIES_FACTS,
    STUDY,
    STUDY_FACTS,
    Facts,
    QueriedSource,
    asked_of,
)
from medenhance_dicom.node.sources.source import MISSING, Found, Known, LeftOut, Wanted, place_of, still_wanted
from medenhance_dicom.node.wire import application_entity, on_open, storage_contexts

CALLING = "MEDENHANCE"
_ADDRESS = re.compile(r"(?P<title>[^@]{1,16})@(?P<host>\[[^\]]+\]|[^:@\[\]]+):(?P<port>[0-9]{1,5})")
_TLS = {"tls-certificate": "certificate", "tls-key": "key", "tls-authority": "authority", "tls-name": "server_name"}
_OPTIONS = {"calling", "listen", "retrieve", "timeout", *_TLS}
_AT_ONCE = 100
"""Instances of one retrieve; a peer may bound the length of a list of UIDs."""
_LISTEN_SECONDS = 60.0


class PeerSource(QueriedSource):
    """`AET@HOST:PORT[?KEY=VALUE&...]`.

    Options: `calling` (our AE title), `timeout` (seconds for one answer), `tls-certificate`, `tls-key`,
    `tls-authority` and `tls-name`; `listen=HOST:PORT`, where we take what the peer sends to our AE title on C-MOVE,
    which is how it comes where the peer has no C-GET; `retrieve=move`, where its C-GET is not to be used.
    A range of StudyDate is gone through day by day, so that no answer is long.
    """

    def __init__(self, name: str) -> None:
        """Args: name: as written.

        Raises:
            InputError: An option or the address is wrong.
        """
        address, _, behind = name.partition("?")
        asked = asked_of(behind, _OPTIONS)
        super().__init__(name, address, asked.keys)
        self._calling = asked.options.get("calling", CALLING)
        self._move = asked.options.get("retrieve", "get") == "move"
        if asked.options.get("retrieve", "get") not in ("get", "move"):
            raise InputError("retrieve: get or move")
        self._listen = _host_and_port(asked.options["listen"]) if "listen" in asked.options else None
        if self._move and self._listen is None:
            raise InputError("retrieve=move needs listen=HOST:PORT")
        self._peer = _peer(address, asked.options)
        self._open = contextlib.ExitStack()
        self._association: Any = None

    # ------------------------------------------------------------ scan

    def scan(self, known: Known) -> Iterator[Found | LeftOut]:
        """As `Source.scan`, over one association as long as the peer keeps it."""
        try:
            yield from super().scan(known)
        finally:
            self._close()

    def find_studies(self, keys: Facts) -> Iterator[Facts | None]:
        """By C-FIND, the days of a range of dates one after the other."""
        for day in _days(keys.get("StudyDate", "")):
            yield from self._find("STUDY", keys | day, (STUDY, *STUDY_FACTS))

    def find_series(self, study: Facts, keys: Facts) -> Iterator[Facts | None]:
        """By C-FIND."""
        yield from self._find("SERIES", keys | {STUDY: study[STUDY]}, (STUDY, SERIES, *SERIES_FACTS))

    def find_instances(self, series: Facts, keys: Facts) -> Iterator[Facts | None]:
        """By C-FIND."""
        above = {STUDY: series[STUDY], SERIES: series[SERIES]}
        yield from self._find("IMAGE", keys | above, (STUDY, SERIES, INSTANCE, *INSTANCE_FACTS))

    def locator_of(self, instance: Facts) -> str:
        """Address and UIDs."""
        return "/".join([self.base, instance[STUDY], instance[SERIES], instance[INSTANCE]])

    def _find(self, level: str, keys: Facts, returned: Sequence[str]) -> list[Facts | None]:
        """All matches at once: the association is closed before the next level is asked."""
        identifier = _identifier(level, dict.fromkeys(returned, "") | keys)
        for kept in (self._association is not None, False):  # an idle one may have been ended in between
            try:
                over = self._associated()
                answers = query.find(self._peer, identifier, calling_ae=self._calling, over=over)
                return [_facts(answer, returned) for answer in answers]
            except RuntimeError:  # pynetdicom's word for an association that ended
                self._close()
                if not kept:
                    raise PeerError(f"{self._peer.name} broke the association off") from None
            except PeerError as error:
                self._close()
                if error.permanent or not kept:
                    raise
        raise AssertionError("the second try returns or raises")

    def _associated(self) -> Any:
        if self._association is None or not self._association.is_established:
            self._close()
            self._association = self._open.enter_context(query.finding(self._peer, calling_ae=self._calling))
        return self._association

    def _close(self) -> None:
        self._association = None
        self._open.close()

    # ------------------------------------------------------------ fetch

    def fetch(self, wanted: Sequence[Wanted], folder: Path) -> Iterator[str]:
        """As `Source.fetch`. Where the peer lists an instance and does not send it, that is a failure for now."""
        for left in folder.glob(".incoming-*"):
            shutil.rmtree(left, ignore_errors=True)
        open_ = {n: item for n, item in enumerate(wanted) if still_wanted(place_of(folder, n), item) is not None}
        numbers = sorted(open_)
        for start in range(0, len(numbers), _AT_ONCE):
            batch = {n: open_[n] for n in numbers[start : start + _AT_ONCE]}
            try:
                self._retrieve(batch, folder)
            except NoContextError:
                raise
            except PeerError:  # some refuse what they do not have, others just send nothing
                if self._still_listed(batch, folder):
                    raise
        kept = self._still_listed(open_, folder)
        if kept:
            raise PeerError(f"{self._peer.name} lists {len(kept)} instances that it did not send")
        for n in numbers:
            if still_wanted(place_of(folder, n), open_[n]) is not None:
                place_of(folder, n).unlink(missing_ok=True)
                yield f"{MISSING}: the archive does not have it any more"

    def _still_listed(self, wanted: dict[int, Wanted], folder: Path) -> list[int]:
        """Those that did not come although the peer has them."""
        missing = [n for n, item in wanted.items() if still_wanted(place_of(folder, n), item) is not None]
        if not missing:
            return []
        one = wanted[missing[0]]
        try:
            answers = list(self.find_instances({STUDY: one.study, SERIES: one.series}, {}))
        finally:
            self._close()
        listed = {facts.get(INSTANCE, "") for facts in answers if facts is not None}
        return [n for n in missing if wanted[n].sop_instance in listed]

    def _retrieve(self, wanted: dict[int, Wanted], folder: Path) -> None:
        """Have instances of a series sent, by their UIDs; where nothing comes of it, the whole series.

        There are peers that know no lists of UIDs, and such that retrieve no single instances.
        """
        one = next(iter(wanted.values()))
        whole = {STUDY: one.study, SERIES: one.series}
        uids = whole | {INSTANCE: "\\".join(item.sop_instance for item in wanted.values())}
        try:
            came = self._bring(_identifier("IMAGE", uids), wanted, folder)
        except NoContextError:
            raise
        except PeerError as error:
            if not error.permanent and len(wanted) == 1:
                raise
            came = 0
        if not came:
            self._bring(_identifier("SERIES", whole), wanted, folder)

    def _bring(self, identifier: Dataset, wanted: dict[int, Wanted], folder: Path) -> int:
        """Retrieve, by C-GET or C-MOVE; how many of the wanted came."""
        with _incoming(folder) as incoming:
            if not self._move:
                try:
                    self._get(identifier, wanted, incoming)
                except NoContextError:
                    if self._listen is None:
                        raise
                    self._move = True
            if self._move:
                self._by_move(identifier, incoming)
            return _sort(incoming, wanted, folder)

    def _get(self, identifier: Dataset, wanted: dict[int, Wanted], incoming: Path) -> None:
        classes = tuple(sorted({item.sop_class for item in wanted.values()}))
        known = {} if "" in classes else {"sop_classes": classes[: MAXIMUM_CONTEXTS - 1]}
        for _ in query.get(self._peer, identifier, incoming, calling_ae=self._calling, **known):
            pass

    def _by_move(self, identifier: Dataset, incoming: Path) -> None:
        with self._listening(incoming):
            for _ in query.move(self._peer, identifier, calling_ae=self._calling, to=self._calling):
                pass

    @contextlib.contextmanager
    def _listening(self, incoming: Path) -> Iterator[None]:
        """Take what the peer sends us. The port is ours for that time: retrieves by C-MOVE of a host take turns."""
        entity: Any = application_entity(self._calling)
        entity.require_called_aet = True
        entity.require_calling_aet = [self._peer.ae_title or ""]
        assert self._listen is not None
        try:
            server = entity.start_server(
                self._listen,
                block=False,
                contexts=storage_contexts(),
                evt_handlers=[
                    (evt.EVT_CONN_OPEN, on_open, [_LISTEN_SECONDS]),
                    (evt.EVT_C_STORE, query.take, [incoming]),
                ],
            )
        except OSError as error:
            raise PeerError(f"{self._listen[0]} port {self._listen[1]}: {error.strerror}") from None
        try:
            yield
        finally:
            server.shutdown()


@contextlib.contextmanager
def _incoming(folder: Path) -> Iterator[Path]:
    incoming = folder / f".incoming-{secrets.token_hex(4)}"
    try:
        incoming.mkdir(mode=0o700)
    except OSError as error:
        raise OutputError(f"cannot write into {folder}: {error.strerror}") from None
    try:
        yield incoming
    finally:
        shutil.rmtree(incoming, ignore_errors=True)


def _sort(incoming: Path, wanted: dict[int, Wanted], folder: Path) -> int:
    """Give every wanted instance that came its place; what nobody asked for goes with the folder."""
    came = 0
    for path in sorted(incoming.glob("*.dcm")):
        for n, item in wanted.items():
            if still_wanted(path, item) is None:
                try:
                    flush(path)
                    path.replace(place_of(folder, n))
                except OSError as error:
                    raise OutputError(f"cannot write into {folder}: {error.strerror}") from None
                came += 1
                break
    return came


def _days(text: str) -> Iterator[Facts]:
    """Every day of a closed range of dates as a key; other texts as they are."""
    found = re.fullmatch(r"([0-9]{8})-([0-9]{8})", text)
    try:
        first, last = (date.fromisoformat(day) for day in found.groups()) if found else (None, None)
    except ValueError:
        raise InputError(f"StudyDate: {text} is not a range of dates") from None
    if first is None or last is None:
        yield {"StudyDate": text} if text else {}
        return
    for number in range((last - first).days + 1):
        yield {"StudyDate": (first + timedelta(number)).strftime("%Y%m%d")}


def _identifier(level: str, keys: Facts) -> Dataset:
    identifier = Dataset()
    identifier.QueryRetrieveLevel = level
    for keyword, value in keys.items():
        several = value.split("\\") if "\\" in value else value
        try:
            setattr(identifier, keyword, several or None)
        except (TypeError, ValueError, AttributeError):
            raise InputError(f"{keyword}: not a value to match") from None
    return identifier


def _facts(answer: Dataset, keywords: Sequence[str]) -> Facts | None:
    try:
        found = {keyword: text_of(answer.get(keyword)) for keyword in keywords}
    except Exception:  # pydicom raises anything for a value that does not decode
        return None
    return {keyword: text for keyword, text in found.items() if text}


def _peer(address: str, options: Facts) -> Destination:
    found = _ADDRESS.fullmatch(address)
    if found is None:
        raise InputError(f"{address} is not AET@HOST:PORT")
    tls = {field: options[option] for option, field in _TLS.items() if option in options}
    try:
        return Destination(
            name=re.sub(r"[^a-z0-9_-]", "-", found["title"].lower()),
            ae_title=found["title"],
            host=found["host"].strip("[]"),
            port=int(found["port"]),
            tls=TLSFiles.model_validate(tls) if tls else None,
            response_timeout=float(options.get("timeout", "300")),
            commit=False,
        )
    except (ValueError, ValidationError):
        raise InputError(f"{address}: the address or an option is wrong") from None


def _host_and_port(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if not colon or not port.isdecimal() or not 0 < int(port) < 65536:
        raise InputError(f"listen: {text} is not HOST:PORT")
    return host.strip("[]"), int(port)
