"""A store in a bucket of S3, or of a server that speaks as S3 does."""

from __future__ import annotations

import io
import random
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, cast

from botocore import UNSIGNED, exceptions
from botocore.auth import AUTH_TYPE_MAPS, S3SigV4Auth
from botocore.config import Config
from botocore.session import Session

from pipeline.delivery.stores import MAX_BYTES, Access, BrokenError, ForbiddenError, StoreError, shown
from pipeline.errors import FailedError, UserError

if TYPE_CHECKING:
    from botocore.awsrequest import AWSRequest
    from types_boto3_s3 import S3Client
    from types_boto3_s3.type_defs import ObjectTypeDef

_CONFLICT_TRIES = 8
_CREDENTIALS = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile in AWS_PROFILE, or a role of this machine"


class _Condition(TypedDict, total=False):
    IfMatch: str
    IfNoneMatch: str


class _Range(TypedDict, total=False):
    Range: str


class _Bytes(io.BytesIO):
    sha256: str | None = None


class _File(io.FileIO):
    sha256: str | None = None


class _KnowingAuth(S3SigV4Auth):
    """Signs the sha256 that is known of a body; botocore would read and hash all of it once more, as it is by then."""

    def payload(self, request: AWSRequest) -> str:
        return getattr(request.body, "sha256", None) or super().payload(request)


_SIGNER = "forgeline-s3v4"
AUTH_TYPE_MAPS[_SIGNER] = _KnowingAuth


def _choose_signer(signature_version: str, **_: object) -> Any:  # str | None, which the stubs do not foresee
    """Ours in the place of Signature Version 4, not of what directory buckets and multi-region access points have."""
    return _SIGNER if signature_version in ("v4", "s3v4") else None


class S3Store:
    """Conditional writes are PutObject with If-None-Match and If-Match: upload_file refuses conditions.

    The plain AWS credential chain and AWS_ENDPOINT_URL_S3 are honoured, where `access` says nothing else. Without
    credentials nothing is signed: a public bucket can be read so, and nothing is written.
    """

    def __init__(self, url: str, access: Access) -> None:
        self.bucket, _, prefix = url.removeprefix("s3://").strip("/").partition("/")
        if not self.bucket:
            raise UserError(f"'{url}' names no bucket; needed s3://bucket/prefix")
        self.prefix = f"{prefix}/" if prefix else ""
        self.url = f"s3://{self.bucket}/{prefix}".rstrip("/")
        config = Config(
            connect_timeout=4,
            read_timeout=30,
            retries={"mode": "standard", "total_max_attempts": 3},
            max_pool_connections=32,
            # The sha256 in the signature guards what is sent, that in the manifest what is read; not every server knows
            # the newer checksums.
            s3={"payload_signing_enabled": True},
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        )
        with self._in_a_sentence():
            # As boto3 makes it, less its resources and transfers, which take long to import.
            session = Session(profile=access.profile)
            for name in ("config_file", "credentials_file"):
                if (file := getattr(access, name)) is not None:
                    session.set_config_variable(name, file)
            self.anonymous = access.access_key_id is None and session.get_credentials() is None
            if self.anonymous:
                config = config.merge(Config(signature_version=UNSIGNED))
            client = session.create_client(
                "s3",
                config=config,
                endpoint_url=access.endpoint_url,
                use_ssl=access.use_ssl,
                verify=access.verify,
                region_name=access.region,
                aws_access_key_id=access.access_key_id,
                aws_secret_access_key=access.secret_access_key,
                aws_session_token=access.session_token,
            )
            self.client = cast("S3Client", client)
        self.client.meta.events.register_first("choose-signer.s3.PutObject", _choose_signer)  # the first answer counts

    def read(self, key: str) -> tuple[bytes, str] | None:
        try:
            with self._in_a_sentence():
                answer = self.client.get_object(Bucket=self.bucket, Key=self.prefix + key)
                data = answer["Body"].read(MAX_BYTES + 1)
                answer["Body"].close()
        except self.client.exceptions.NoSuchKey:
            return None
        if len(data) > MAX_BYTES:
            raise FailedError(
                f"{self.url}/{key}: is larger than {MAX_BYTES:,} bytes; needed what Forgeline writes there"
            )
        return data, answer["ETag"]

    def chunks(self, key: str, start: int = 0, stop: int | None = None) -> Generator[bytes, None, None]:
        wanted: _Range = {}
        if start or stop is not None:
            wanted = {"Range": f"bytes={start}-{'' if stop is None else stop - 1}"}
        try:
            with self._in_a_sentence():
                answer = self.client.get_object(Bucket=self.bucket, Key=self.prefix + key, **wanted)
                if wanted and not answer.get("ContentRange", "").startswith(f"bytes {start}-"):
                    raise FailedError(f"{self.url}/{key}: came from its beginning; needed a server that knows ranges")
                yield from answer["Body"].iter_chunks(1 << 20)
        except self.client.exceptions.NoSuchKey:
            raise FailedError(f"{self.url}/{key}: is missing") from None

    def sizes(self, prefix: str) -> dict[str, int]:
        return {found["Key"].removeprefix(self.prefix): found["Size"] for found in self._objects(prefix)}

    def times(self, prefix: str) -> dict[str, datetime]:
        return {found["Key"].removeprefix(self.prefix): found["LastModified"] for found in self._objects(prefix)}

    def folders(self, prefix: str) -> list[str]:
        return [name.rstrip("/") for name in self._names(prefix) if name.endswith("/")]

    def files(self, prefix: str) -> list[str]:
        return [name for name in self._names(prefix) if not name.endswith("/")]

    def create(self, key: str, source: bytes | Path, sha256: str | None = None) -> bool:
        return self._put(key, source, {"IfNoneMatch": "*"}, sha256)

    def swap(self, key: str, data: bytes, tag: str | None) -> bool:
        if tag is None:
            return self._put(key, data, {"IfNoneMatch": "*"})
        if self._put(key, data, {"IfMatch": tag}):
            return True
        found = self.read(key)
        # Ceph RGW 16 wants the tag without its quotes and else calls every one stale.
        return found is not None and found[1] == tag and self._put(key, data, {"IfMatch": tag.strip('"')})

    def delete(self, key: str) -> None:
        self._check_known()
        with self._in_a_sentence():
            self.client.delete_object(Bucket=self.bucket, Key=self.prefix + key)

    def _objects(self, prefix: str) -> list[ObjectTypeDef]:
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=self.prefix + prefix)
        with self._in_a_sentence():
            return [found for page in pages for found in page.get("Contents", [])]

    def _names(self, prefix: str) -> list[str]:
        """What is directly in `prefix`; the names of folders end in '/'."""
        start = self.prefix + prefix
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=start, Delimiter="/")
        with self._in_a_sentence():
            found = [
                name
                for page in pages
                for name in (
                    *(folder["Prefix"] for folder in page.get("CommonPrefixes", [])),
                    *(each["Key"] for each in page.get("Contents", [])),
                )
            ]
        return sorted(name.removeprefix(start) for name in found)

    def _put(self, key: str, source: bytes | Path, condition: _Condition, sha256: str | None = None) -> bool:
        self._check_known()
        for attempt in range(_CONFLICT_TRIES):
            with self._in_a_sentence(), _Bytes(source) if isinstance(source, bytes) else _File(source) as body:
                body.sha256 = sha256
                try:
                    self.client.put_object(
                        Bucket=self.bucket,
                        Key=self.prefix + key,
                        Body=body,
                        **condition,
                    )
                    return True
                except exceptions.ClientError as error:
                    status, code = _status(error)
                    if status == 412 or code == "NoSuchKey":  # stale, or removed meanwhile
                        return False
                    if status != 409:
                        raise
            time.sleep(random.uniform(0, 0.1 * 2**attempt))
        raise FailedError(f"{self.url}/{key}: other writers were in the way {_CONFLICT_TRIES} times; try again later")

    @contextmanager
    def _in_a_sentence(self) -> Iterator[None]:
        try:
            yield
        except exceptions.ClientError as error:
            status, code = _status(error)
            if code == "NoSuchKey":
                raise
            if code == "NoSuchBucket":
                raise UserError(f"{self.url}: there is no bucket '{self.bucket}' at {self._endpoint}") from None
            operation, message = error.operation_name, error.response["Error"].get("Message") or "no reason given"
            if status in (401, 403) and self.anonymous:
                raise ForbiddenError(
                    f"{self.url}: found no credentials, and {operation} is refused without ({code}); needed "
                    f"{_CREDENTIALS}"
                ) from None
            if status in (401, 403):
                raise ForbiddenError(
                    f"{self.url}: {operation} is refused with these credentials ({code}); needed ones that may"
                ) from None
            kind = BrokenError if status >= 500 or status == 429 else StoreError
            raise kind(f"{self.url}: {operation} failed with {status} {code} ({message})") from None
        except (exceptions.NoCredentialsError, exceptions.PartialCredentialsError):
            raise self._unknown() from None
        except (exceptions.ConnectionError, exceptions.HTTPClientError, exceptions.IncompleteReadError) as error:
            raise BrokenError(f"{self.url}: {self._endpoint} did not answer ({type(error).__name__})") from None
        except (exceptions.ParamValidationError, exceptions.ProfileNotFound, ValueError) as error:
            raise UserError(f"{self.url}: {shown(' '.join(str(error).split()))}") from None
        except exceptions.BotoCoreError as error:
            raise StoreError(f"{self.url}: {shown(' '.join(str(error).split()))}") from None

    def _check_known(self) -> None:
        """Raise StoreError without credentials: nobody means to write to a bucket that lets everybody."""
        if self.anonymous:
            raise self._unknown()

    def _unknown(self) -> StoreError:
        return StoreError(f"{self.url}: found no credentials; needed {_CREDENTIALS}")

    @property
    def _endpoint(self) -> str:
        return shown(self.client.meta.endpoint_url)


def _status(error: exceptions.ClientError) -> tuple[int, str]:
    """The HTTP status and the error code in an answer; servers leave out either."""
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    return status, error.response.get("Error", {}).get("Code", "unknown")
