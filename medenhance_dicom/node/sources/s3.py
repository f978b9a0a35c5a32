"""Instances of an object store that speaks S3. Headers come by ranged requests: nothing is downloaded to look at it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from medenhance_dicom.errors import ConfigurationError, InputError, PeerError
from medenhance_dicom.headers import Blocks
from medenhance_dicom.node.sources.files import ahead
from medenhance_dicom.node.sources.judging import judge
from medenhance_dicom.node.sources.source import (
    DIRECTORY,
    HIDDEN,
    MISSING,
    NOT_DICOM,
    UNREADABLE,
    Found,
    Known,
    LeftOut,
    Wanted,
    bringing,
    place_of,
    still_wanted,
)

READERS = 16
"""Requests at once: one takes tens of milliseconds."""
_BLOCK = 65536
_CHUNK = 1 << 20
_SCHEME = "s3://"
_OF_AN_OBJECT = {"NoSuchKey", "404", "InvalidObjectState", "PreconditionFailed", "412", "InvalidRange", "416"}
_TRANSIENT = {"SlowDown", "InternalError", "ServiceUnavailable", "RequestTimeout", "Throttling", "500", "502", "503"}
"""Codes of errors. The rest is about the store as a whole and stays as it is: keys, rights, names."""


class _Object(NamedTuple):
    key: str
    size: int
    stamp: str


class S3Source:
    """`s3://BUCKET/PREFIX`. Implements `Source`.

    Credentials, region and endpoint come from the environment or the usual files (`AWS_ENDPOINT_URL`,
    `AWS_ACCESS_KEY_ID`, ...), never from the name.
    """

    def __init__(self, name: str, *, readers: int | None = None) -> None:
        """Args: name: as written; readers: requests at once.

        Raises:
            InputError: It names no bucket.
        """
        self.name = name
        self._bucket, _, self._prefix = name.removeprefix(_SCHEME).partition("/")
        if not self._bucket:
            raise InputError(f"{name}: names no bucket")
        self._readers = readers or READERS
        self._s3: Any = None

    def scan(self, known: Known) -> Iterator[Found | LeftOut]:
        """As `Source.scan`, in the order of keys."""
        self._client()
        with ThreadPoolExecutor(self._readers, thread_name_prefix="headers") as pool:
            try:
                yield from ahead(pool, self._judged, self._listed(known), 2 * self._readers)
            finally:
                pool.shutdown(cancel_futures=True)

    def _listed(self, known: Known) -> Iterator[_Object | LeftOut]:
        for key, size, stamp in self._objects():
            parts = PurePosixPath(key.removeprefix(self._prefix)).parts
            locator = self._locator(key)
            if any(part.startswith(".") for part in parts):
                yield LeftOut(locator, f"{HIDDEN}: a hidden object")
            elif PurePosixPath(key).name.upper() == "DICOMDIR":
                yield LeftOut(locator, f"{DIRECTORY}: a directory of other files")
            elif size == 0:
                yield LeftOut(locator, f"{NOT_DICOM}: empty")
            elif not known(locator, size, stamp):
                yield _Object(key, size, stamp)

    def _objects(self) -> Iterator[_Object]:
        with self._errors():
            for page in (
                self._client().get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=self._prefix)
            ):
                for item in page.get("Contents", ()):
                    yield _Object(item["Key"], item["Size"], item["ETag"].strip('"'))

    def _judged(self, item: _Object | LeftOut) -> Found | LeftOut:
        if isinstance(item, LeftOut):
            return item
        locator = self._locator(item.key)
        try:
            with self._errors():
                blocks = Blocks(partial(self._range, item.key, item.size), item.size, block=_BLOCK)
                return judge(blocks, locator, item.size, item.stamp)
        except _ObjectError as error:
            return LeftOut(locator, f"{UNREADABLE}: the store does not give it: {error}")

    def _range(self, key: str, size: int, position: int, count: int) -> bytes:
        if position >= size or count <= 0:
            return b""
        end = min(position + count, size) - 1
        body = self._client().get_object(Bucket=self._bucket, Key=key, Range=f"bytes={position}-{end}")["Body"]
        return bytes(body.read())

    def _locator(self, key: str) -> str:
        return f"{_SCHEME}{self._bucket}/{key}"

    def fetch(self, wanted: Sequence[Wanted], folder: Path) -> Iterator[str]:
        """As `Source.fetch`, several at once."""
        self._client()
        with ThreadPoolExecutor(self._readers, thread_name_prefix="fetching") as pool:
            try:
                reasons: Iterable[str | None] = ahead(
                    pool, lambda pair: self._bring(pair[1], place_of(folder, pair[0])), enumerate(wanted), self._readers
                )
                yield from (reason for reason in reasons if reason is not None)
            finally:
                pool.shutdown(cancel_futures=True)

    def _bring(self, item: Wanted, place: Path) -> str | None:
        if still_wanted(place, item) is None:
            return None
        bucket, _, key = item.locator.removeprefix(_SCHEME).partition("/")
        try:
            with self._errors():
                body = self._client().get_object(Bucket=bucket, Key=key)["Body"]
                with contextlib.closing(body), bringing(place) as write:
                    for chunk in body.iter_chunks(_CHUNK):
                        write(chunk)
            reason = still_wanted(place, item)
        except _ObjectError as error:
            reason = f"{MISSING}: the store does not give it: {error}"
        if reason is not None:
            place.unlink(missing_ok=True)
        return reason

    def _client(self) -> Any:
        """The client, made when it is first needed; threads share it.

        Raises:
            ConfigurationError: boto3 is not installed, or its configuration is wrong.
        """
        if self._s3 is not None:
            return self._s3
        try:
            import boto3
            from botocore.config import Config
            from botocore.exceptions import BotoCoreError
        except ImportError:
            raise ConfigurationError("S3 needs the extra: pip install medenhance-dicom[s3]") from None
        config = Config(
            connect_timeout=5, read_timeout=60, retries={"mode": "standard"}, max_pool_connections=self._readers
        )
        try:
            self._s3 = boto3.session.Session().client("s3", config=config)
        except (BotoCoreError, ValueError) as error:
            raise ConfigurationError(f"S3: {type(error).__name__}") from None
        return self._s3

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        """What goes wrong between us and the store, as PeerError, or as _ObjectError where it is about one object."""
        from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, PartialCredentialsError

        name = f"{_SCHEME}{self._bucket}"
        try:
            yield
        except ClientError as error:
            code = str(error.response.get("Error", {}).get("Code", ""))
            if code in _OF_AN_OBJECT:
                raise _ObjectError(code) from None
            raise PeerError(f"{name}: the store answers {code}", permanent=code not in _TRANSIENT) from None
        except (NoCredentialsError, PartialCredentialsError):
            raise PeerError(f"{name}: no credentials", permanent=True) from None
        except (BotoCoreError, ConnectionError, TimeoutError) as error:
            raise PeerError(f"{name} cannot be reached, or broke off: {type(error).__name__}") from None


class _ObjectError(Exception):
    """One object that cannot be had; the text is the store's code."""
