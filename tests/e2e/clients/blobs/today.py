"""The SDK of today: azure-storage-blob 12.

Usage: today.py GENERATION [CHECK...]
"""

import base64
import datetime
import hashlib
import io
import sys

from azure.core import MatchConditions
from azure.core.exceptions import (
    ClientAuthenticationError,
    HttpResponseError,
    ResourceExistsError,
    ResourceModifiedError,
    ResourceNotFoundError,
)
from azure.storage.blob import (
    AccessPolicy,
    AccountSasPermissions,
    BlobBlock,
    BlobLeaseClient,
    BlobPrefix,
    BlobSasPermissions,
    BlobServiceClient,
    ContainerSasPermissions,
    ContentSettings,
    CorsRule,
    PublicAccess,
    ResourceTypes,
    generate_account_sas,
    generate_blob_sas,
    generate_container_sas,
)

import harness
from harness import MIB, equal, holds, new_name, pattern

service = BlobServiceClient.from_connection_string(harness.CONNECTION)
NOW = datetime.datetime.now(datetime.timezone.utc)
HOUR = datetime.timedelta(hours=1)


class Container:
    """A container that goes at the end."""

    def __enter__(self):
        self.client = service.create_container(new_name())
        return self.client

    def __exit__(self, *_):
        self.client.delete_container()


def refused(status, work, kind=HttpResponseError, code=None):
    """`work` must be refused with this status, this class of error, and this code of the service."""
    try:
        work()
    except HttpResponseError as error:
        holds(isinstance(error, kind), f"{type(error).__name__} instead of {kind.__name__}")
        equal(error.status_code, status, f"status of {error}")
        if code:
            equal(str(getattr(error.error_code, "value", error.error_code)), code)
        return error
    raise AssertionError(f"not refused with {status}")


def sas_client(token):
    return BlobServiceClient(harness.ENDPOINT, credential=token)


def blob_sas(container, blob, permission, expiry=None, **more):
    return generate_blob_sas(harness.ACCOUNT, container.container_name, blob, account_key=harness.KEY,
                             permission=permission, expiry=expiry or NOW + HOUR, **more)


def with_blob_sas(container, blob, *arguments, **more):
    token = blob_sas(container, blob, *arguments, **more)
    return sas_client(token).get_blob_client(container.container_name, blob)


def read(blob):
    return blob.download_blob().readall()


def check_containers():
    name = new_name()
    client = service.get_container_client(name)
    holds(not client.exists(), "it is not there yet")
    client.create_container(metadata={"owner": "me", "n": "1"})
    holds(client.exists(), "it is there")
    refused(409, client.create_container, ResourceExistsError, "ContainerAlreadyExists")
    before = client.get_container_properties()
    equal(before.metadata, {"owner": "me", "n": "1"})
    client.set_container_metadata({"other": "x"})
    after = client.get_container_properties()
    equal(after.metadata, {"other": "x"})
    holds(after.etag != before.etag and after.last_modified >= before.last_modified, "another version")
    others = [new_name(name) for _ in range(3)]
    for other in others:
        service.create_container(other)
    found = list(service.list_containers(name_starts_with=name, include_metadata=True))
    equal([container.name for container in found], sorted([name, *others]))
    equal(found[0].metadata, {"other": "x"})
    pages = service.list_containers(name_starts_with=name, results_per_page=3).by_page()
    equal([len(list(page)) for page in pages], [3, 1])
    for each in [name, *others]:
        service.delete_container(each)
    refused(404, client.delete_container, ResourceNotFoundError, "ContainerNotFound")


def check_put_and_get():
    with Container() as container:
        blob = container.get_blob_client("b")
        blob.upload_blob(b"\x00\x01hello")
        equal(read(blob), b"\x00\x01hello")
        refused(409, lambda: blob.upload_blob(b"x"), ResourceExistsError, "BlobAlreadyExists")
        blob.upload_blob("grüße\n", overwrite=True, encoding="utf-8")
        equal(blob.download_blob(encoding="utf-8").readall(), "grüße\n")
        blob.upload_blob(b"", overwrite=True)
        equal(read(blob), b"")
        holds(blob.exists() and not container.get_blob_client("none").exists(), "exists")
        container.delete_blob("b")
        holds(not blob.exists(), "deleted")


def check_properties_and_metadata():
    with Container() as container:
        blob = container.get_blob_client("b")
        settings = ContentSettings(content_type="text/x-a", content_encoding="identity", content_language="de",
                                   content_disposition="inline", cache_control="no-cache")
        blob.upload_blob(b"12345", content_settings=settings, metadata={"a": "1", "b_c": "x y"})
        first = blob.get_blob_properties()
        equal(first.metadata, {"a": "1", "b_c": "x y"})
        equal((first.size, str(first.blob_type.value)), (5, "BlockBlob"))
        content = first.content_settings
        equal((content.content_type, content.content_encoding, content.content_language, content.content_disposition,
               content.cache_control), ("text/x-a", "identity", "de", "inline", "no-cache"))
        equal((first.lease.status, first.lease.state), ("unlocked", "available"))
        holds(NOW - HOUR < first.creation_time < NOW + HOUR, "time of creation")
        blob.set_blob_metadata({"z": "9"})
        blob.set_http_headers(ContentSettings(content_type="text/y"))
        changed = blob.get_blob_properties()
        equal((changed.metadata, changed.content_settings.content_type, changed.content_settings.content_language),
              ({"z": "9"}, "text/y", None))
        holds(changed.etag != first.etag, "another ETag")
        equal(read(blob), b"12345")


def check_ranges():
    with Container() as container:
        data = pattern(100_000)
        blob = container.upload_blob("b", data)
        for start, length in [(0, 1), (10, 10), (99_999, 1), (50_000, 200_000)]:
            equal(blob.download_blob(offset=start, length=length).readall(), data[start:start + length], f"{start}+{length}")
        equal(blob.download_blob(offset=99_000).readall(), data[99_000:])
        refused(416, lambda: blob.download_blob(offset=100_000, length=2), code="InvalidRange")


def check_conditions():
    with Container() as container:
        blob = container.upload_blob("b", b"1")
        first = blob.get_blob_properties()
        same = {"etag": first.etag, "match_condition": MatchConditions.IfNotModified}
        blob.upload_blob(b"2", overwrite=True, **same)
        refused(412, lambda: blob.upload_blob(b"3", overwrite=True, **same), ResourceModifiedError, "ConditionNotMet")
        now = blob.get_blob_properties()
        changed = {"etag": now.etag, "match_condition": MatchConditions.IfModified}
        refused(304, lambda: blob.download_blob(**changed), code="ConditionNotMet")
        refused(412, lambda: blob.download_blob(**same), ResourceModifiedError)
        refused(304, lambda: blob.get_blob_properties(if_modified_since=now.last_modified))
        refused(412, lambda: blob.set_blob_metadata({"a": "1"}, if_unmodified_since=NOW - HOUR))
        refused(412, lambda: blob.delete_blob(**same), ResourceModifiedError)
        missing = {"match_condition": MatchConditions.IfPresent}
        refused(412, lambda: container.get_blob_client("none").upload_blob(b"1", overwrite=True, **missing))
        blob.delete_blob(etag=now.etag, match_condition=MatchConditions.IfNotModified)
        refused(412, lambda: container.delete_container(if_unmodified_since=NOW - HOUR))


def check_blocks():
    with Container() as container:
        blob = container.get_blob_client("b")
        for name in ["one", "two", "six"]:
            blob.stage_block(name, name.encode() * 1000)
        committed, staged = blob.get_block_list("all")
        equal((committed, [block.size for block in staged]), ([], [3000] * 3))
        holds(not blob.exists(), "not there before it is committed")
        blob.commit_block_list([BlobBlock("two"), BlobBlock("one"), BlobBlock("two")], metadata={"a": "1"})
        equal(read(blob), b"two" * 1000 + b"one" * 1000 + b"two" * 1000)
        committed, staged = blob.get_block_list("all")
        equal(([(block.id, block.size) for block in committed], staged), ([("two", 3000), ("one", 3000), ("two", 3000)], []))
        blob.stage_block("mor", b"more")
        blob.commit_block_list([BlobBlock("one"), BlobBlock("mor")])
        equal(read(blob), b"one" * 1000 + b"more")
        refused(400, lambda: blob.commit_block_list([BlobBlock("xxx")]), code="InvalidBlockList")
        blob.stage_block("new", b"x")
        refused(400, lambda: blob.stage_block("another length", b"x"), code="InvalidBlobOrBlock")


def check_large_in_parallel():
    with Container() as container:
        data = pattern(70 * MIB + 12_345)
        seen = []
        blob = container.upload_blob("b", data, max_concurrency=4, progress_hook=lambda now, total: seen.append((now, total)))
        equal(max(seen), (len(data), len(data)), "progress")
        equal(blob.download_blob(max_concurrency=4).readall() == data, True, "all bytes")
        target = io.BytesIO()
        blob.download_blob(max_concurrency=2, validate_content=True).readinto(target)
        equal(target.getvalue() == data, True, "all bytes, with MD5 of every range")
        small = BlobServiceClient.from_connection_string(
            harness.CONNECTION, max_single_put_size=MIB, max_block_size=MIB, max_single_get_size=MIB, max_chunk_get_size=MIB)
        again = small.get_blob_client(container.container_name, "again")
        again.upload_blob(data[:20 * MIB], max_concurrency=8, validate_content=True)
        equal(again.download_blob(max_concurrency=8).readall() == data[:20 * MIB], True, "many small pieces")


def check_streams():
    with Container() as container:
        for length in [0, 1, 5 * MIB, 9 * MIB + 7]:
            data = pattern(length, length)
            pieces = (data[at:at + 300_001] for at in range(0, length, 300_001))
            blob = container.upload_blob("b", pieces, overwrite=True)
            equal(b"".join(blob.download_blob().chunks()) == data, True, f"{length} bytes")
            blob = container.upload_blob("c", io.BytesIO(data), length=length, overwrite=True)
            equal(read(blob) == data, True, f"{length} bytes of a file")


def check_lists():
    with Container() as container:
        names = sorted([f"dir{d}/file{n:02}" for d in range(3) for n in range(8)] + ["top1", "top2"])
        for name in names:
            container.upload_blob(name, name.encode(), metadata={"n": "v"})
        equal([blob.name for blob in container.list_blobs()], names)
        equal(list(container.list_blob_names()), names)
        equal([blob.name for blob in container.list_blobs(name_starts_with="dir1/")], [n for n in names if n.startswith("dir1/")])
        found = [(isinstance(entry, BlobPrefix), entry.name) for entry in container.walk_blobs(delimiter="/")]
        equal(sorted(found), [(False, "top1"), (False, "top2"), (True, "dir0/"), (True, "dir1/"), (True, "dir2/")])
        pages = [[blob.name for blob in page] for page in container.list_blobs(results_per_page=7).by_page()]
        equal([len(page) for page in pages], [7, 7, 7, 5])
        equal([name for page in pages for name in page], names)
        first = container.list_blobs(results_per_page=7).by_page()
        next(first)
        rest = container.list_blobs(results_per_page=7).by_page(first.continuation_token)
        equal([blob.name for page in rest for blob in page], names[7:])
        one = next(iter(container.list_blobs(name_starts_with="top1", include=["metadata"])))
        equal((one.metadata, one.size, str(one.blob_type.value)), ({"n": "v"}, 4, "BlockBlob"))
        equal(list(container.list_blobs(name_starts_with="none")), [])


def check_odd_names():
    with Container() as container:
        for name in harness.ODD_NAMES:
            container.upload_blob(name, name.encode())
        equal(sorted(blob.name for blob in container.list_blobs()), sorted(harness.ODD_NAMES))
        for name in harness.ODD_NAMES:
            equal(read(container.get_blob_client(name)), name.encode())
            equal(read(with_blob_sas(container, name, BlobSasPermissions(read=True))), name.encode(), f"{name} by signature")
            container.delete_blob(name)


def check_copies():
    with Container() as container, Container() as other:
        small = container.upload_blob("small", b"abc", metadata={"a": "1"})
        large = container.upload_blob("large", pattern(5 * MIB))
        for source in [small, large]:
            target = other.get_blob_client(f"copy-{source.blob_name}")
            copy = target.start_copy_from_url(source.url)
            equal(copy["copy_status"], "success")
            properties = target.get_blob_properties()
            equal((properties.copy.id, properties.copy.status), (copy["copy_id"], "success"))
        equal(read(other.get_blob_client("copy-large")) == pattern(5 * MIB), True)
        target = other.get_blob_client("copy-small")
        equal(target.get_blob_properties().metadata, {"a": "1"})
        target.start_copy_from_url(small.url, metadata={"b": "2"})
        equal(target.get_blob_properties().metadata, {"b": "2"})
        refused(404, lambda: target.start_copy_from_url(container.get_blob_client("none").url), ResourceNotFoundError)


def check_copies_aborted():
    with Container() as container:
        source, target = container.upload_blob("a", b"abc"), container.get_blob_client("b")
        copy = target.start_copy_from_url(source.url)
        refused(409, lambda: target.abort_copy(copy["copy_id"]), code="NoPendingCopyOperation")


def check_copies_from_urls():
    with Container() as container:
        container.upload_blob("a", pattern(1000))
        url = with_blob_sas(container, "a", BlobSasPermissions(read=True)).url
        target = container.get_blob_client("b")
        equal(target.start_copy_from_url(url, requires_sync=True)["copy_status"], "success")
        equal(read(target), pattern(1000))
        target = container.get_blob_client("c")
        target.stage_block_from_url("blk", url, source_offset=10, source_length=100)
        target.commit_block_list([BlobBlock("blk")])
        equal(read(target), pattern(1000)[10:110])
        target = container.get_blob_client("d")
        target.upload_blob_from_url(url)
        equal(read(target), pattern(1000))


def check_blob_sas():
    with Container() as container:
        blob = container.upload_blob("b", b"secret")
        reader = with_blob_sas(container, "b", BlobSasPermissions(read=True))
        equal(harness.plain_get(reader.url), (200, b"secret"))
        refused(403, lambda: reader.upload_blob(b"x", overwrite=True), code="AuthorizationPermissionMismatch")
        wrong = sas_client(blob_sas(container, "b", BlobSasPermissions(read=True))).get_blob_client(container.container_name, "other")
        refused(403, lambda: read(wrong), ClientAuthenticationError, "AuthenticationFailed")
        writer = with_blob_sas(container, "n", BlobSasPermissions(write=True))
        writer.upload_blob(pattern(MIB), overwrite=True)
        equal(read(container.get_blob_client("n")), pattern(MIB))
        creator = with_blob_sas(container, "c", BlobSasPermissions(create=True))
        creator.upload_blob(b"1", overwrite=True)
        refused(403, lambda: creator.upload_blob(b"2", overwrite=True))
        for more in [{"expiry": NOW - HOUR}, {"expiry": NOW + 2 * HOUR, "start": NOW + HOUR}, {"ip": "10.9.8.7"}]:
            equal(harness.plain_get(with_blob_sas(container, "b", BlobSasPermissions(read=True), **more).url)[0], 403, str(more))
        local = with_blob_sas(container, "b", BlobSasPermissions(read=True), ip="127.0.0.1", protocol="https,http")
        equal(harness.plain_get(local.url)[0], 200)
        shown = with_blob_sas(container, "b", BlobSasPermissions(read=True), content_type="text/z", cache_control="max-age=1")
        content = shown.download_blob().properties.content_settings
        equal((content.content_type, content.cache_control), ("text/z", "max-age=1"))
        equal(harness.plain_get(reader.url.replace("sig=", "sig=A"))[0], 403)
        equal(read(blob), b"secret")


def check_container_sas():
    with Container() as container:
        for name in ["a", "b"]:
            container.upload_blob(name, b"1")

        def sas(**permissions):
            token = generate_container_sas(harness.ACCOUNT, container.container_name, account_key=harness.KEY,
                                           permission=ContainerSasPermissions(**permissions), expiry=NOW + HOUR)
            return sas_client(token).get_container_client(container.container_name)

        listing = sas(list=True)
        equal(list(listing.list_blob_names()), ["a", "b"])
        refused(403, lambda: read(listing.get_blob_client("a")))
        equal(read(sas(read=True).get_blob_client("b")), b"1")
        refused(403, lambda: list(sas(read=True).list_blobs()))
        sas(write=True).upload_blob("new/one", b"2", overwrite=True)
        refused(403, lambda: sas(write=True).delete_blob("a"))
        sas(delete=True).delete_blob("a")
        equal(list(listing.list_blob_names()), ["b", "new/one"])


def check_account_sas():
    with Container() as container:
        def sas(types, **permissions):
            return sas_client(generate_account_sas(harness.ACCOUNT, harness.KEY, types, AccountSasPermissions(**permissions), NOW + HOUR))

        everything = sas(ResourceTypes(service=True, container=True, object=True),
                         read=True, write=True, delete=True, list=True, add=True, create=True)
        blob = everything.get_blob_client(container.container_name, "b")
        blob.upload_blob(b"1")
        equal(read(blob), b"1")
        equal([found.name for found in everything.list_containers(name_starts_with=container.container_name)],
              [container.container_name])
        everything.create_container(new := new_name())
        everything.delete_container(new)
        objects = sas(ResourceTypes(object=True), read=True)
        equal(read(objects.get_blob_client(container.container_name, "b")), b"1")
        refused(403, lambda: list(objects.get_container_client(container.container_name).list_blobs()),
                code="AuthorizationResourceTypeMismatch")
        refused(403, lambda: objects.get_blob_client(container.container_name, "b").upload_blob(b"2", overwrite=True))


def check_stored_policies():
    with Container() as container:
        container.upload_blob("b", b"1")
        policy = AccessPolicy(permission=ContainerSasPermissions(read=True), expiry=NOW + HOUR, start=NOW - HOUR)
        container.set_container_access_policy({"readers": policy})
        found = container.get_container_access_policy()["signed_identifiers"]
        equal([(identifier.id, identifier.access_policy.permission) for identifier in found], [("readers", "r")])
        token = generate_container_sas(harness.ACCOUNT, container.container_name, account_key=harness.KEY, policy_id="readers")
        reader = sas_client(token).get_container_client(container.container_name)
        equal(read(reader.get_blob_client("b")), b"1")
        refused(403, lambda: list(reader.list_blobs()))
        container.set_container_access_policy({})
        equal(container.get_container_access_policy()["signed_identifiers"], [])
        refused(403, lambda: read(reader.get_blob_client("b")), ClientAuthenticationError)


def check_public_access():
    with Container() as container:
        blob = container.upload_blob("b", b"1")
        listing = f"{container.url}?restype=container&comp=list"
        holds(harness.plain_get(blob.url)[0] in (401, 403, 404, 409), "private at first")
        container.set_container_access_policy({}, public_access=PublicAccess.BLOB)
        equal(container.get_container_access_policy()["public_access"], "blob")
        equal(harness.plain_get(blob.url), (200, b"1"))
        holds(harness.plain_get(listing)[0] >= 400, "lists are not public")
        container.set_container_access_policy({}, public_access=PublicAccess.CONTAINER)
        equal(harness.plain_get(listing)[0], 200)
        container.set_container_access_policy({})
        equal(container.get_container_access_policy()["public_access"], None)
        holds(harness.plain_get(blob.url)[0] >= 400, "private again")


def check_leases_of_blobs():
    with Container() as container:
        blob = container.upload_blob("b", b"1")
        lease = blob.acquire_lease(lease_duration=15)
        found = blob.get_blob_properties().lease
        equal((found.status, found.state, found.duration), ("locked", "leased", "fixed"))
        refused(409, blob.acquire_lease, ResourceExistsError, "LeaseAlreadyPresent")
        refused(412, lambda: blob.upload_blob(b"2", overwrite=True), code="LeaseIdMissing")
        refused(412, blob.delete_blob, code="LeaseIdMissing")
        blob.upload_blob(b"2", overwrite=True, lease=lease)
        blob.set_blob_metadata({"a": "1"}, lease=lease)
        equal(read(blob), b"2", "reading needs no lease")
        lease.renew()
        old = lease.id
        lease.change(proposed_lease_id="0f1a2b3c-4d5e-6f70-8192-a3b4c5d6e7f8")
        refused(412, lambda: blob.set_blob_metadata({}, lease=old), code="LeaseIdMismatchWithBlobOperation")
        lease.release()
        blob.acquire_lease()
        equal(blob.get_blob_properties().lease.duration, "infinite")
        equal(BlobLeaseClient(blob).break_lease(lease_break_period=0), 0)
        equal(blob.get_blob_properties().lease.state, "broken")
        blob.delete_blob()


def check_leases_of_containers():
    container = service.create_container(new_name())
    lease = container.acquire_lease()
    equal(container.get_container_properties().lease.state, "leased")
    refused(412, container.delete_container, code="LeaseIdMissing")
    container.upload_blob("b", b"1")
    lease.renew()
    lease.break_lease(lease_break_period=0)
    lease = container.acquire_lease(lease_duration=15)
    container.set_container_metadata({"a": "1"}, lease=lease)
    container.delete_container(lease=lease)


def check_snapshots():
    with Container() as container:
        blob = container.upload_blob("b", b"old", metadata={"a": "1"})
        snapshot = blob.create_snapshot()["snapshot"]
        blob.upload_blob(b"new", overwrite=True)
        old = container.get_blob_client("b", snapshot=snapshot)
        equal((read(old), old.get_blob_properties().metadata, read(blob)), (b"old", {"a": "1"}, b"new"))
        listed = [(found.name, found.snapshot) for found in container.list_blobs(include=["snapshots"])]
        equal(sorted(listed, key=str), sorted([("b", snapshot), ("b", None)], key=str))
        equal([found.name for found in container.list_blobs()], ["b"])
        refused(409, blob.delete_blob, code="SnapshotsPresent")
        old.delete_blob()
        refused(404, lambda: read(old), ResourceNotFoundError)
        blob.create_snapshot()
        blob.delete_blob(delete_snapshots="include")
        equal(list(container.list_blobs(include=["snapshots"])), [])


def check_copies_of_snapshots():
    with Container() as container:
        blob = container.upload_blob("b", b"old")
        old = container.get_blob_client("b", snapshot=blob.create_snapshot()["snapshot"])
        blob.upload_blob(b"new", overwrite=True)
        for target in [container.get_blob_client("other"), blob]:
            target.start_copy_from_url(old.url)
            equal(read(target), b"old")


def check_append_blobs():
    with Container() as container:
        log = container.get_blob_client("log")
        log.create_append_blob()
        first = log.append_block(b"one\n")
        second = log.append_block(b"two\n", appendpos_condition=4)
        equal((first["blob_append_offset"], second["blob_append_offset"], second["blob_committed_block_count"]), ("0", "4", 2))
        refused(412, lambda: log.append_block(b"x", appendpos_condition=4), code="AppendPositionConditionNotMet")
        refused(412, lambda: log.append_block(b"x", maxsize_condition=8), code="MaxBlobSizeConditionNotMet")
        log.upload_blob(b"three\n", blob_type="AppendBlob")
        equal(read(log), b"one\ntwo\nthree\n")
        equal(str(log.get_blob_properties().blob_type.value), "AppendBlob")
        log.upload_blob(pattern(5 * MIB), blob_type="AppendBlob")
        equal(log.get_blob_properties().size, 14 + 5 * MIB)
        refused(409, lambda: log.stage_block("blk", b"x"), code="InvalidBlobType")


def check_service_properties():
    before = service.get_service_properties()
    try:
        rule = CorsRule(["http://example.com"], ["GET", "PUT"], allowed_headers=["x-ms-meta-*"], exposed_headers=["x-ms-*"],
                        max_age_in_seconds=60)
        service.set_service_properties(cors=[rule])
        found = service.get_service_properties()["cors"]
        equal([(rule.allowed_origins, rule.allowed_methods, rule.max_age_in_seconds) for rule in found],
              [("http://example.com", "GET,PUT", 60)])
    finally:
        service.set_service_properties(cors=before["cors"] or [])
    equal(len(service.get_service_properties()["cors"] or []), len(before["cors"] or []))
    equal(service.get_account_information()["account_kind"], "StorageV2")


def check_checksums():
    with Container() as container:
        data = pattern(1000)
        md5 = hashlib.md5(data).digest()
        blob = container.upload_blob("b", data, validate_content=True)
        equal(bytes(blob.get_blob_properties().content_settings.content_md5), md5)
        container.upload_blob("c", data, content_settings=ContentSettings(content_md5=bytearray(md5)))
        wrong = ContentSettings(content_md5=bytearray(b"0" * 16))
        refused(400, lambda: container.upload_blob("d", data, content_settings=wrong), code="Md5Mismatch")
        holds(not container.get_blob_client("d").exists(), "nothing was written")
        container.get_blob_client("e").stage_block("x", data, validate_content=True)
        equal(blob.download_blob(offset=0, length=100, validate_content=True).readall(), data[:100])
        equal(base64.b64encode(blob.get_blob_properties().content_settings.content_md5), base64.b64encode(md5))


def check_errors():
    with Container() as container:
        none = container.get_blob_client("none")
        refused(404, lambda: read(none), ResourceNotFoundError, "BlobNotFound")
        refused(404, none.get_blob_properties, ResourceNotFoundError, "BlobNotFound")
        refused(404, none.delete_blob, ResourceNotFoundError, "BlobNotFound")
        refused(404, lambda: service.get_blob_client(new_name(), "b").upload_blob(b"1"), ResourceNotFoundError, "ContainerNotFound")
        refused(400, lambda: service.create_container("Bad_Name"), code="InvalidResourceName")
        wrong = BlobServiceClient(harness.ENDPOINT, credential={"account_name": harness.ACCOUNT, "account_key": "A" * 86 + "=="})
        refused(403, lambda: list(wrong.get_container_client(container.container_name).list_blobs()),
                ClientAuthenticationError, "AuthenticationFailed")


harness.main(sys.argv[1], globals())
