"""Instances of a DICOMweb service: found by QIDO-RS, brought by WADO-RS (PS3.18 sections 10.6 and 10.4)."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from medenhance_dicom.errors import ConfigurationError, InputError, PeerError
from medenhance_dicom.node.multipart import MultipartError, MultipartReader, PartBegins, PartData, PartEnds, media_type
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
from medenhance_dicom.node.sources.source import MISSING, Wanted, bringing, place_of, still_wanted

_OPTIONS = {"authorization-file", "tls-authority", "timeout"}
_PAGE = 500
_CONNECT_SECONDS = 5.0
_CHUNK = 1 << 17
_SERIES_COUNT, _INSTANCE_COUNT = "NumberOfStudyRelatedSeries", "NumberOfSeriesRelatedInstances"
_PERMANENT = {400, 401, 403, 405, 406, 411, 413, 414, 415, 501}
_ACCEPT = 'multipart/related; type="application/dicom"'
_ANY_SYNTAX = f"{_ACCEPT}; transfer-syntax=*"
"""As it is stored; without it a server has to rewrite everything as Explicit VR Little Endian."""


class WebSource(QueriedSource):
    """`https://host/dicom-web[?KEY=VALUE&...]`.

    Options: `authorization-file`, which holds the value of the Authorization header; `tls-authority`, that the server's
    certificate has to come from in place of the system's; `timeout` (seconds in which something has to come).
    """

    def __init__(self, name: str) -> None:
        """Args: name: as written.

        Raises:
            InputError: An option is wrong.
        """
        base, _, behind = name.partition("?")
        asked = asked_of(behind, _OPTIONS)
        super().__init__(name, base.rstrip("/").removesuffix("/studies"), asked.keys)
        self._options = asked.options
        try:
            self._timeout = (_CONNECT_SECONDS, float(asked.options.get("timeout", "300")))
        except ValueError:
            raise InputError("timeout: not a number of seconds") from None
        self._web: Any = None
        self._session: Any = None

    # ------------------------------------------------------------ scan

    def find_studies(self, keys: Facts) -> Iterator[Facts | None]:
        """By QIDO-RS, page by page."""
        search = self._client().search_for_studies
        yield from self._search(search, (), keys, (STUDY, *STUDY_FACTS, _SERIES_COUNT), None)

    def find_series(self, study: Facts, keys: Facts) -> Iterator[Facts | None]:
        """By QIDO-RS."""
        fields = (STUDY, SERIES, *SERIES_FACTS, _INSTANCE_COUNT)
        count = None if keys else study.get(_SERIES_COUNT)
        yield from self._search(self._client().search_for_series, (study[STUDY],), keys, fields, count)

    def find_instances(self, series: Facts, keys: Facts) -> Iterator[Facts | None]:
        """By QIDO-RS."""
        fields = (STUDY, SERIES, INSTANCE, *INSTANCE_FACTS)
        count = None if keys else series.get(_INSTANCE_COUNT)
        above = (series[STUDY], series[SERIES])
        yield from self._search(self._client().search_for_instances, above, keys, fields, count)

    def locator_of(self, instance: Facts) -> str:
        """The URL of the instance."""
        return self._url(instance[STUDY], instance[SERIES], instance[INSTANCE])

    def _url(self, study: str, series: str, instance: str) -> str:
        return f"{self.base}/studies/{study}/series/{series}/instances/{instance}"

    def _search(
        self, search: Callable[..., list[dict[str, Any]]], above: Sequence[str], keys: Facts, fields: Sequence[str],
        count: str | None,
    ) -> Iterator[Facts | None]:  # fmt: skip
        """Pages until as many came as there are (`count`), or nothing new does: servers cap pages as they like."""
        expected = int(count) if count is not None and count.isdecimal() else None
        offset, last = 0, None
        while expected is None or offset < expected:
            with _web_errors(self.base):
                page = search(*above, search_filters=keys, fields=list(fields), limit=_PAGE, offset=offset)
            if not page or page == last:
                return
            offset, last = offset + len(page), page
            yield from (_facts(answer, fields) for answer in page)

    # ------------------------------------------------------------ fetch

    def fetch(self, wanted: Sequence[Wanted], folder: Path) -> Iterator[str]:
        """As `Source.fetch`, one request for each instance over one connection."""
        self._client()
        for n, item in enumerate(wanted):
            place = place_of(folder, n)
            if still_wanted(place, item) is None:
                continue
            reason = self._bring(item, place) or still_wanted(place, item)
            if reason is not None:
                place.unlink(missing_ok=True)
                yield reason

    def _bring(self, item: Wanted, place: Path) -> str | None:
        url = self._url(item.study, item.series, item.sop_instance)
        with _web_errors(self.base):
            for accept in (_ANY_SYNTAX, _ACCEPT):
                with self._connection().get(
                    url, headers={"Accept": accept}, stream=True, timeout=self._timeout, allow_redirects=False
                ) as response:
                    if response.status_code in (400, 406) and accept == _ANY_SYNTAX:
                        continue
                    if response.status_code in (404, 410):
                        return f"{MISSING}: the archive does not have it any more"
                    if response.status_code != 200:
                        raise self._refusal(response.status_code)
                    with bringing(place) as write:
                        for data in _instance(response):
                            write(data)
                    return None
        raise self._refusal(406)

    def _refusal(self, status: int) -> PeerError:
        return PeerError(f"{self.base} answers HTTP {status}", permanent=status in _PERMANENT or 300 <= status < 400)

    def _connection(self) -> Any:
        self._client()
        return self._session

    def _client(self) -> Any:
        """The client, made when it is first needed.

        Raises:
            ConfigurationError: dicomweb-client is not installed, or the file with the authorization cannot be read.
        """
        if self._web is not None:
            return self._web
        try:
            import requests
            from dicomweb_client.api import DICOMwebClient
        except ImportError:
            raise ConfigurationError("DICOMweb needs the extra: pip install medenhance-dicom[dicomweb]") from None
        logging.getLogger("dicomweb_client").setLevel(logging.CRITICAL)  # its lines hold what was asked
        session = self._session = requests.Session()
        session.trust_env = False
        session.max_redirects = 0
        session.verify = self._options.get("tls-authority", True)
        if "authorization-file" in self._options:
            file = Path(self._options["authorization-file"])
            try:
                session.headers["Authorization"] = file.read_text().strip()
            except (OSError, UnicodeDecodeError):
                raise ConfigurationError(f"{file} cannot be read") from None
        try:
            self._web = DICOMwebClient(self.base, session=session, timeout=self._timeout, permissive_uid=True)
        except ValueError:
            raise InputError(f"{self.base} is not the URL of a DICOMweb service") from None
        self._web.set_http_retry_params(retry=False)  # whoever fetches repeats, with growing pauses
        return self._web


def _facts(answer: Any, keywords: Sequence[str]) -> Facts | None:
    """Of a DICOM JSON object (PS3.18 annex F); None where it is none."""
    from pydicom.datadict import tag_for_keyword

    found = {}
    try:
        for keyword in keywords:
            values = answer.get(f"{tag_for_keyword(keyword):08X}", {}).get("Value", [])
            found[keyword] = text_of([value for value in values if isinstance(value, str | int | float)])
    except (AttributeError, TypeError):
        return None
    return {keyword: text for keyword, text in found.items() if text}


def _instance(response: Any) -> Iterator[bytes]:
    """The bytes of the first DICOM part of an answer, or of one that is no multipart."""
    kind, parameters = media_type(response.headers.get("Content-Type", ""))
    chunks = response.iter_content(_CHUNK)
    if kind == "application/dicom":
        yield from chunks
        return
    if not kind.startswith("multipart/"):
        raise PeerError("the server answers something else than DICOM", permanent=True)
    reader = MultipartReader(parameters.get("boundary", ""))
    inside = False
    for chunk in chunks:
        for event in reader.feed(chunk):
            match event:
                case PartBegins(content_type):
                    inside = content_type in (None, "application/dicom")
                case PartData(data) if inside:
                    yield data
                case PartEnds() if inside:
                    return
    raise MultipartError("no part is whole")


@contextlib.contextmanager
def _web_errors(base: str) -> Iterator[None]:
    """What goes wrong between us and a server, as PeerError."""
    from requests import exceptions

    try:
        yield
    except exceptions.HTTPError as error:
        status = error.response.status_code if error.response is not None else 0
        raise PeerError(f"{base} answers HTTP {status}", permanent=status in {*_PERMANENT, 404}) from None
    except (exceptions.InvalidURL, exceptions.TooManyRedirects, exceptions.SSLError) as error:
        raise PeerError(f"{base}: {type(error).__name__}", permanent=True) from None
    except (exceptions.ConnectTimeout, exceptions.ConnectionError) as error:
        raise PeerError(f"{base} cannot be reached, or broke off: {type(error).__name__}") from None
    except (exceptions.RequestException, MultipartError) as error:
        raise PeerError(f"{base} broke the answer off: {type(error).__name__}") from None
    except ValueError:
        raise PeerError(f"{base} answers what is not JSON") from None
