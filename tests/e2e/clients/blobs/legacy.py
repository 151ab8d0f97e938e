"""The SDK of 2017 and its successors up to 2019: azure-storage 0.33, azure-storage-blob 0.37 and 2.1.

Usage: legacy.py GENERATION [CHECK...]
"""

import datetime
import io
import os
import sys
import tempfile

from azure.common import AzureConflictHttpError, AzureException, AzureHttpError, AzureMissingResourceHttpError
from azure.storage.blob import (
    AppendBlobService, BlobPermissions, BlockBlobService, ContainerPermissions, ContentSettings, DeleteSnapshot, PublicAccess)
from azure.storage.blob.models import BlobBlock, BlobPrefix, Include

try:
    from azure.storage.common import AccessPolicy, AccountPermissions, CorsRule, ResourceTypes
except ImportError:
    from azure.storage import AccessPolicy, AccountPermissions, CorsRule, ResourceTypes

import harness
from harness import MIB, equal, holds, new_name, pattern

service = BlockBlobService(connection_string=harness.CONNECTION)
NOW = datetime.datetime.utcnow()
HOUR = datetime.timedelta(hours=1)


class Container:
    """A container that goes at the end."""

    def __enter__(self):
        self.name = new_name()
        holds(service.create_container(self.name), "a new container is made")
        return self.name

    def __exit__(self, *_):
        service.delete_container(self.name)


def refused(status, work, kind=AzureHttpError):
    """`work` must be refused with this status and this class of error."""
    try:
        work()
    except AzureException as error:
        holds(isinstance(error, kind), f"{type(error).__name__} instead of {kind.__name__}")
        equal(getattr(error, "status_code", None), status, f"status of {error}")
        return error
    raise AssertionError(f"not refused with {status}")


def with_sas(token):
    """A client that has only this signature."""
    return BlockBlobService(connection_string=f"SharedAccessSignature={token};BlobEndpoint={harness.ENDPOINT}")


def check_containers():
    name = new_name()
    holds(not service.exists(name), "it is not there yet")
    holds(service.create_container(name, metadata={"owner": "me", "n": "1"}), "made")
    holds(service.exists(name), "it is there")
    holds(not service.create_container(name), "making it again is no error, but false")
    refused(409, lambda: service.create_container(name, fail_on_exist=True), AzureConflictHttpError)
    equal(service.get_container_metadata(name), {"owner": "me", "n": "1"})
    before = service.get_container_properties(name)
    service.set_container_metadata(name, {"other": "x"})
    after = service.get_container_properties(name)
    equal(after.metadata, {"other": "x"})
    holds(after.properties.etag != before.properties.etag, "another ETag")
    holds(after.properties.last_modified >= before.properties.last_modified, "a later time")
    others = [new_name(name) for _ in range(3)]
    for other in others:
        service.create_container(other)
    found = list(service.list_containers(prefix=name, include_metadata=True))
    equal([container.name for container in found], sorted([name, *others]))
    equal(found[0].metadata, {"other": "x"})
    first = service.list_containers(prefix=name, num_results=2)
    equal(len(list(first)), 2)
    rest = service.list_containers(prefix=name, marker=first.next_marker)
    equal(len(list(rest)), 2)
    for each in [name, *others]:
        holds(service.delete_container(each), "deleted")
    holds(not service.delete_container(name), "deleting it again is no error, but false")
    refused(404, lambda: service.delete_container(name, fail_not_exist=True), AzureMissingResourceHttpError)


def check_put_and_get():
    with Container() as container:
        service.create_blob_from_bytes(container, "bytes", b"\x00\x01hello")
        equal(service.get_blob_to_bytes(container, "bytes").content, b"\x00\x01hello")
        service.create_blob_from_text(container, "text", "grüße\n")
        equal(service.get_blob_to_text(container, "text").content, "grüße\n")
        service.create_blob_from_bytes(container, "empty", b"")
        equal(service.get_blob_to_bytes(container, "empty").content, b"")
        service.create_blob_from_bytes(container, "bytes", b"again")
        equal(service.get_blob_to_bytes(container, "bytes").content, b"again")
        with tempfile.TemporaryDirectory() as directory:
            there, back = os.path.join(directory, "there"), os.path.join(directory, "back")
            with open(there, "wb") as file:
                file.write(pattern(300_000))
            service.create_blob_from_path(container, "file", there)
            service.get_blob_to_path(container, "file", back)
            with open(back, "rb") as file:
                equal(file.read(), pattern(300_000))
        holds(service.exists(container, "file") and not service.exists(container, "none"), "exists")
        service.delete_blob(container, "file")
        holds(not service.exists(container, "file"), "deleted")


def check_properties_and_metadata():
    with Container() as container:
        settings = ContentSettings(content_type="text/x-a", content_encoding="identity", content_language="de",
                                   content_disposition="inline", cache_control="no-cache")
        service.create_blob_from_bytes(container, "b", b"12345", content_settings=settings, metadata={"a": "1", "b_c": "x y"})
        blob = service.get_blob_properties(container, "b")
        equal(blob.metadata, {"a": "1", "b_c": "x y"})
        properties, content = blob.properties, blob.properties.content_settings
        equal((properties.content_length, properties.blob_type), (5, "BlockBlob"))
        equal((content.content_type, content.content_encoding, content.content_language, content.content_disposition,
               content.cache_control), ("text/x-a", "identity", "de", "inline", "no-cache"))
        equal((properties.lease.status, properties.lease.state), ("unlocked", "available"))
        service.set_blob_metadata(container, "b", {"z": "9"})
        equal(service.get_blob_metadata(container, "b"), {"z": "9"})
        service.set_blob_properties(container, "b", ContentSettings(content_type="text/y"))
        changed = service.get_blob_properties(container, "b")
        equal((changed.properties.content_settings.content_type, changed.properties.content_settings.content_language),
              ("text/y", None))
        holds(changed.properties.etag != properties.etag, "another ETag")
        equal(changed.metadata, {"z": "9"}, "metadata stays")
        equal(service.get_blob_to_bytes(container, "b").content, b"12345")


def check_ranges():
    with Container() as container:
        data = pattern(100_000)
        service.create_blob_from_bytes(container, "b", data)
        for start, end in [(0, 1), (10, 19), (99_999, 99_999), (50_000, 200_000)]:
            equal(service.get_blob_to_bytes(container, "b", start_range=start, end_range=end).content,
                  data[start:end + 1], f"{start}-{end}")
        equal(service.get_blob_to_bytes(container, "b", start_range=99_000).content, data[99_000:])
        refused(416, lambda: service.get_blob_to_bytes(container, "b", start_range=100_000, end_range=100_001))


def check_conditions():
    with Container() as container:
        service.create_blob_from_bytes(container, "b", b"1")
        first = service.get_blob_properties(container, "b").properties
        service.create_blob_from_bytes(container, "b", b"2", if_match=first.etag)
        refused(412, lambda: service.create_blob_from_bytes(container, "b", b"3", if_match=first.etag))
        refused(409, lambda: service.create_blob_from_bytes(container, "b", b"3", if_none_match="*"), AzureConflictHttpError)
        now = service.get_blob_properties(container, "b").properties
        refused(304, lambda: service.get_blob_to_bytes(container, "b", if_none_match=now.etag))
        refused(412, lambda: service.get_blob_to_bytes(container, "b", if_match=first.etag))
        refused(304, lambda: service.get_blob_properties(container, "b", if_modified_since=now.last_modified))
        refused(412, lambda: service.set_blob_metadata(container, "b", {"a": "1"}, if_unmodified_since=NOW - HOUR))
        refused(412, lambda: service.delete_blob(container, "b", if_match=first.etag))
        service.delete_blob(container, "b", if_match=now.etag)
        refused(412, lambda: service.delete_container(container, if_unmodified_since=NOW - HOUR))


def check_blocks():
    with Container() as container:
        for name in ["one", "two", "six"]:
            service.put_block(container, "b", name.encode() * 1000, name)
        staged = service.get_block_list(container, "b", block_list_type="all")
        equal(([block.id for block in staged.committed_blocks], len(staged.uncommitted_blocks)), ([], 3))
        holds(not service.exists(container, "b"), "not there before it is committed")
        service.put_block_list(container, "b", [BlobBlock("two"), BlobBlock("one"), BlobBlock("two")], metadata={"a": "1"})
        equal(service.get_blob_to_bytes(container, "b").content, b"two" * 1000 + b"one" * 1000 + b"two" * 1000)
        listed = service.get_block_list(container, "b", block_list_type="all")
        equal([(block.id, block.size) for block in listed.committed_blocks], [("two", 3000), ("one", 3000), ("two", 3000)])
        equal(listed.uncommitted_blocks, [], "what was not named is gone")
        service.put_block(container, "b", b"more", "mor")
        service.put_block_list(container, "b", [BlobBlock("one"), BlobBlock("mor")])
        equal(service.get_blob_to_bytes(container, "b").content, b"one" * 1000 + b"more")
        refused(400, lambda: service.put_block_list(container, "b", [BlobBlock("xxx")]))
        service.put_block(container, "b", b"x", "new")
        refused(400, lambda: service.put_block(container, "b", b"x", "another length"))


def check_large_in_parallel():
    with Container() as container:
        data = pattern(70 * MIB + 12_345)
        seen = []
        service.create_blob_from_bytes(container, "b", data, max_connections=4, validate_content=True,
                                       progress_callback=lambda now, total: seen.append((now, total)))
        equal(seen[-1], (len(data), len(data)), "progress")
        equal(service.get_blob_to_bytes(container, "b", max_connections=4).content == data, True, "all bytes")
        target = io.BytesIO()
        service.get_blob_to_stream(container, "b", target, max_connections=2, validate_content=True)
        equal(target.getvalue() == data, True, "all bytes, with MD5 of every range")
        service.get_blob_to_bytes(container, "b", start_range=65 * MIB, end_range=66 * MIB)


def check_streams():
    class Pipe(io.RawIOBase):
        """Cannot be rewound."""

        def __init__(self, data):
            self.inner = io.BytesIO(data)

        def readable(self):
            return True

        def seekable(self):
            return False

        def read(self, size=-1):
            return self.inner.read(size)

    with Container() as container:
        for length in [0, 1, 5 * MIB, 9 * MIB + 7]:
            data = pattern(length, length)
            service.create_blob_from_stream(container, "b", Pipe(data), max_connections=1)
            target = io.BytesIO()
            service.get_blob_to_stream(container, "b", target, max_connections=1)
            equal(target.getvalue() == data, True, f"{length} bytes")


def check_lists():
    with Container() as container:
        names = sorted([f"dir{d}/file{n:02}" for d in range(3) for n in range(8)] + ["top1", "top2"])
        for name in names:
            service.create_blob_from_bytes(container, name, name.encode(), metadata={"n": "v"})
        equal([blob.name for blob in service.list_blobs(container)], names)
        equal([blob.name for blob in service.list_blobs(container, prefix="dir1/")], [n for n in names if n.startswith("dir1/")])
        found = list(service.list_blobs(container, delimiter="/"))
        equal([(type(entry) is BlobPrefix, entry.name) for entry in found],
              [(True, "dir0/"), (True, "dir1/"), (True, "dir2/"), (False, "top1"), (False, "top2")]
              if isinstance(found[0], BlobPrefix) else
              [(False, "top1"), (False, "top2"), (True, "dir0/"), (True, "dir1/"), (True, "dir2/")])
        pages, marker = [], None
        while True:
            page = service.list_blobs(container, num_results=7, marker=marker)
            pages.append([blob.name for blob in page])
            marker = page.next_marker
            if not marker:
                break
        equal([len(page) for page in pages], [7, 7, 7, 5])
        equal([name for page in pages for name in page], names)
        one = next(iter(service.list_blobs(container, prefix="top1", include=Include.METADATA)))
        equal((one.metadata, one.properties.content_length, one.properties.blob_type), ({"n": "v"}, 4, "BlockBlob"))
        equal(list(service.list_blobs(container, prefix="none")), [])


def check_odd_names():
    with Container() as container:
        for name in harness.ODD_NAMES:
            service.create_blob_from_text(container, name, name)
        equal(sorted(blob.name for blob in service.list_blobs(container)), sorted(harness.ODD_NAMES))
        for name in harness.ODD_NAMES:
            equal(service.get_blob_to_text(container, name).content, name)
            token = service.generate_blob_shared_access_signature(
            container, name, permission=BlobPermissions.READ, expiry=NOW + HOUR)
            equal(with_sas(token).get_blob_to_text(container, name).content, name, f"{name} by signature")
            service.delete_blob(container, name)


def check_copies():
    with Container() as container, Container() as other:
        service.create_blob_from_bytes(container, "small", b"abc", metadata={"a": "1"})
        service.create_blob_from_bytes(container, "large", pattern(5 * MIB))
        for name in ["small", "large"]:
            copy = service.copy_blob(other, f"copy-{name}", service.make_blob_url(container, name))
            holds(copy.id and copy.status == "success", f"copied at once: {copy.status}")
            blob = service.get_blob_properties(other, f"copy-{name}")
            equal((blob.properties.copy.id, blob.properties.copy.status), (copy.id, "success"))
        equal(service.get_blob_to_bytes(other, "copy-large").content == pattern(5 * MIB), True)
        equal(service.get_blob_metadata(other, "copy-small"), {"a": "1"})
        service.copy_blob(other, "copy-small", service.make_blob_url(container, "small"), metadata={"b": "2"})
        equal(service.get_blob_metadata(other, "copy-small"), {"b": "2"})
        refused(404, lambda: service.copy_blob(other, "x", service.make_blob_url(container, "none")))


def check_copies_aborted():
    with Container() as container:
        service.create_blob_from_bytes(container, "a", b"abc")
        copy = service.copy_blob(container, "b", service.make_blob_url(container, "a"))
        refused(409, lambda: service.abort_copy_blob(container, "b", copy.id), AzureConflictHttpError)


def check_copies_from_urls():
    with Container() as container:
        service.create_blob_from_bytes(container, "a", pattern(1000))
        token = service.generate_blob_shared_access_signature(
            container, "a", permission=BlobPermissions.READ, expiry=NOW + HOUR)
        url = service.make_blob_url(container, "a", sas_token=token)
        copy = service.copy_blob(container, "b", url, requires_sync=True)
        equal(copy.status, "success")
        equal(service.get_blob_to_bytes(container, "b").content, pattern(1000))
        service.put_block_from_url(container, "c", url, 10, 109, "blk")
        service.put_block_list(container, "c", [BlobBlock("blk")])
        equal(service.get_blob_to_bytes(container, "c").content, pattern(1000)[10:110])


def check_blob_sas():
    with Container() as container:
        service.create_blob_from_bytes(container, "b", b"secret")
        read = service.generate_blob_shared_access_signature(
            container, "b", permission=BlobPermissions.READ, expiry=NOW + HOUR)
        equal(harness.plain_get(service.make_blob_url(container, "b", sas_token=read)), (200, b"secret"))
        refused(403, lambda: with_sas(read).create_blob_from_bytes(container, "b", b"x"))
        refused(403, lambda: with_sas(read).get_blob_to_bytes(container, "other"))
        write = service.generate_blob_shared_access_signature(
            container, "n", permission=BlobPermissions.WRITE, expiry=NOW + HOUR)
        with_sas(write).create_blob_from_bytes(container, "n", pattern(MIB))
        equal(service.get_blob_to_bytes(container, "n").content, pattern(MIB))
        create = service.generate_blob_shared_access_signature(
            container, "c", permission=BlobPermissions.CREATE, expiry=NOW + HOUR)
        with_sas(create).create_blob_from_bytes(container, "c", b"1")
        refused(403, lambda: with_sas(create).create_blob_from_bytes(container, "c", b"2"))
        old = service.generate_blob_shared_access_signature(
            container, "b", permission=BlobPermissions.READ, expiry=NOW - HOUR)
        equal(harness.plain_get(service.make_blob_url(container, "b", sas_token=old))[0], 403)
        early = service.generate_blob_shared_access_signature(
            container, "b", permission=BlobPermissions.READ, expiry=NOW + 2 * HOUR, start=NOW + HOUR)
        equal(harness.plain_get(service.make_blob_url(container, "b", sas_token=early))[0], 403)
        headers = service.generate_blob_shared_access_signature(
            container, "b", permission=BlobPermissions.READ, expiry=NOW + HOUR, content_type="text/z", cache_control="max-age=1")
        shown = with_sas(headers).get_blob_to_bytes(container, "b").properties.content_settings
        equal((shown.content_type, shown.cache_control), ("text/z", "max-age=1"))
        forged = read.replace("sig=", "sig=A")
        equal(harness.plain_get(service.make_blob_url(container, "b", sas_token=forged))[0], 403)


def check_container_sas():
    with Container() as container:
        for name in ["a", "b"]:
            service.create_blob_from_bytes(container, name, b"1")
        sas = lambda permissions: with_sas(
            service.generate_container_shared_access_signature(container, permissions, NOW + HOUR))
        listing = sas(ContainerPermissions.LIST)
        equal([blob.name for blob in listing.list_blobs(container)], ["a", "b"])
        refused(403, lambda: listing.get_blob_to_bytes(container, "a"))
        equal(sas(ContainerPermissions.READ).get_blob_to_bytes(container, "b").content, b"1")
        refused(403, lambda: list(sas(ContainerPermissions.READ).list_blobs(container)))
        sas(ContainerPermissions.WRITE).create_blob_from_bytes(container, "new/one", b"2")
        refused(403, lambda: sas(ContainerPermissions.WRITE).delete_blob(container, "a"))
        sas(ContainerPermissions.DELETE).delete_blob(container, "a")
        equal([blob.name for blob in listing.list_blobs(container)], ["b", "new/one"])


def check_account_sas():
    with Container() as container:
        make = lambda types, permissions: with_sas(
            service.generate_account_shared_access_signature(types, permissions, NOW + HOUR))
        whole = ResourceTypes(service=True, container=True, object=True)
        everything = make(whole, AccountPermissions(read=True, write=True, delete=True, list=True, add=True, create=True))
        everything.create_blob_from_bytes(container, "b", b"1")
        equal(everything.get_blob_to_bytes(container, "b").content, b"1")
        equal([found.name for found in everything.list_containers(prefix=container)], [container])
        another = new_name()
        everything.create_container(another)
        everything.delete_container(another)
        objects = make(ResourceTypes(object=True), AccountPermissions(read=True))
        equal(objects.get_blob_to_bytes(container, "b").content, b"1")
        refused(403, lambda: list(objects.list_blobs(container)))
        refused(403, lambda: objects.create_blob_from_bytes(container, "b", b"2"))


def check_stored_policies():
    with Container() as container:
        service.create_blob_from_bytes(container, "b", b"1")
        policy = AccessPolicy(permission=ContainerPermissions.READ, expiry=NOW + HOUR, start=NOW - HOUR)
        service.set_container_acl(container, {"readers": policy})
        found = service.get_container_acl(container)
        equal((list(found), str(found["readers"].permission)), (["readers"], "r"))
        token = service.generate_container_shared_access_signature(container, id="readers")
        equal(with_sas(token).get_blob_to_bytes(container, "b").content, b"1")
        refused(403, lambda: list(with_sas(token).list_blobs(container)))
        service.set_container_acl(container, {})
        equal(dict(service.get_container_acl(container)), {})
        refused(403, lambda: with_sas(token).get_blob_to_bytes(container, "b"))


def check_public_access():
    with Container() as container:
        service.create_blob_from_bytes(container, "b", b"1")
        url = service.make_blob_url(container, "b")
        listing = f"{harness.ENDPOINT}/{container}?restype=container&comp=list"
        holds(harness.plain_get(url)[0] in (401, 403, 404, 409), "private at first")
        service.set_container_acl(container, public_access=PublicAccess.Blob)
        equal(service.get_container_acl(container).public_access, "blob")
        equal(harness.plain_get(url), (200, b"1"))
        holds(harness.plain_get(listing)[0] >= 400, "lists are not public")
        service.set_container_acl(container, public_access=PublicAccess.Container)
        equal(harness.plain_get(listing)[0], 200)
        service.set_container_acl(container)
        equal(service.get_container_acl(container).public_access, None)
        holds(harness.plain_get(url)[0] >= 400, "private again")


def check_leases_of_blobs():
    with Container() as container:
        service.create_blob_from_bytes(container, "b", b"1")
        lease = service.acquire_blob_lease(container, "b", lease_duration=15)
        found = service.get_blob_properties(container, "b").properties.lease
        equal((found.status, found.state, found.duration), ("locked", "leased", "fixed"))
        refused(409, lambda: service.acquire_blob_lease(container, "b"), AzureConflictHttpError)
        refused(412, lambda: service.create_blob_from_bytes(container, "b", b"2"))
        refused(412, lambda: service.delete_blob(container, "b"))
        service.create_blob_from_bytes(container, "b", b"2", lease_id=lease)
        service.set_blob_metadata(container, "b", {"a": "1"}, lease_id=lease)
        equal(service.get_blob_to_bytes(container, "b").content, b"2", "reading needs no lease")
        equal(service.renew_blob_lease(container, "b", lease), lease)
        other = "0f1a2b3c-4d5e-6f70-8192-a3b4c5d6e7f8"
        service.change_blob_lease(container, "b", lease, proposed_lease_id=other)
        refused(409, lambda: service.renew_blob_lease(container, "b", lease), AzureConflictHttpError)
        service.release_blob_lease(container, "b", other)
        lease = service.acquire_blob_lease(container, "b")
        equal(service.get_blob_properties(container, "b").properties.lease.duration, "infinite")
        equal(service.break_blob_lease(container, "b", lease_break_period=0), 0)
        equal(service.get_blob_properties(container, "b").properties.lease.state, "broken")
        service.delete_blob(container, "b")


def check_leases_of_containers():
    name = new_name()
    service.create_container(name)
    lease = service.acquire_container_lease(name)
    equal(service.get_container_properties(name).properties.lease.state, "leased")
    refused(412, lambda: service.delete_container(name))
    service.create_blob_from_bytes(name, "b", b"1")
    service.renew_container_lease(name, lease)
    service.break_container_lease(name, lease_break_period=0)
    lease = service.acquire_container_lease(name, lease_duration=15)
    service.set_container_metadata(name, {"a": "1"}, lease_id=lease)
    service.delete_container(name, lease_id=lease)


def check_snapshots():
    with Container() as container:
        service.create_blob_from_bytes(container, "b", b"old", metadata={"a": "1"})
        snapshot = service.snapshot_blob(container, "b").snapshot
        service.create_blob_from_bytes(container, "b", b"new")
        equal(service.get_blob_to_bytes(container, "b", snapshot=snapshot).content, b"old")
        equal(service.get_blob_metadata(container, "b", snapshot=snapshot), {"a": "1"})
        equal(service.get_blob_to_bytes(container, "b").content, b"new")
        listed = [(blob.name, blob.snapshot) for blob in service.list_blobs(container, include=Include.SNAPSHOTS)]
        equal(sorted(listed, key=str), sorted([("b", snapshot), ("b", None)], key=str))
        equal([blob.name for blob in service.list_blobs(container)], ["b"])
        refused(409, lambda: service.delete_blob(container, "b"), AzureConflictHttpError)
        service.delete_blob(container, "b", snapshot=snapshot)
        refused(404, lambda: service.get_blob_to_bytes(container, "b", snapshot=snapshot), AzureMissingResourceHttpError)
        service.snapshot_blob(container, "b")
        service.delete_blob(container, "b", delete_snapshots=DeleteSnapshot.Include)
        equal(list(service.list_blobs(container, include=Include.SNAPSHOTS)), [])


def check_copies_of_snapshots():
    with Container() as container:
        service.create_blob_from_bytes(container, "b", b"old")
        snapshot = service.snapshot_blob(container, "b").snapshot
        service.create_blob_from_bytes(container, "b", b"new")
        for target in ["other", "b"]:
            service.copy_blob(container, target, service.make_blob_url(container, "b") + f"?snapshot={snapshot}")
            equal(service.get_blob_to_bytes(container, target).content, b"old")


def check_append_blobs():
    appends = AppendBlobService(connection_string=harness.CONNECTION)
    with Container() as container:
        appends.create_blob(container, "log")
        first = appends.append_block(container, "log", b"one\n")
        second = appends.append_block(container, "log", b"two\n", appendpos_condition=4)
        equal((first.append_offset, second.append_offset, second.committed_block_count), (0, 4, 2))
        refused(412, lambda: appends.append_block(container, "log", b"x", appendpos_condition=4))
        refused(412, lambda: appends.append_block(container, "log", b"x", maxsize_condition=8))
        appends.append_blob_from_text(container, "log", "three\n")
        found = appends.get_blob_to_bytes(container, "log")
        equal((found.content, found.properties.blob_type), (b"one\ntwo\nthree\n", "AppendBlob"))
        appends.append_blob_from_bytes(container, "log", pattern(5 * MIB))
        equal(appends.get_blob_properties(container, "log").properties.content_length, 14 + 5 * MIB)
        refused(409, lambda: service.put_block(container, "log", b"x", "blk"), AzureConflictHttpError)


def check_service_properties():
    before = service.get_blob_service_properties()
    try:
        rule = CorsRule(["http://example.com"], ["GET", "PUT"], 60, ["x-ms-meta-*"], ["x-ms-*"])
        service.set_blob_service_properties(cors=[rule])
        found = service.get_blob_service_properties()
        equal([(rule.allowed_origins, rule.allowed_methods, rule.max_age_in_seconds) for rule in found.cors],
              [(["http://example.com"], ["GET", "PUT"], 60)])
    finally:
        service.set_blob_service_properties(cors=before.cors or [])
    equal(len(service.get_blob_service_properties().cors or []), len(before.cors or []))


def check_checksums():
    import base64
    import hashlib
    with Container() as container:
        data = pattern(1000)
        md5 = base64.b64encode(hashlib.md5(data).digest()).decode()
        service.create_blob_from_bytes(container, "b", data, validate_content=True)
        equal(service.get_blob_properties(container, "b").properties.content_settings.content_md5, md5)
        service.create_blob_from_bytes(container, "c", data, content_settings=ContentSettings(content_md5=md5))
        wrong = ContentSettings(content_md5=base64.b64encode(b"0" * 16).decode())
        refused(400, lambda: service.create_blob_from_bytes(container, "d", data, content_settings=wrong))
        holds(not service.exists(container, "d"), "nothing was written")
        service.put_block(container, "e", data, "x", validate_content=True)
        equal(service.get_blob_to_bytes(container, "b", start_range=0, end_range=99, validate_content=True).content, data[:100])


def check_errors():
    with Container() as container:
        missing = refused(404, lambda: service.get_blob_to_bytes(container, "none"), AzureMissingResourceHttpError)
        holds("BlobNotFound" in str(missing) or "not exist" in str(missing), str(missing))
        refused(404, lambda: service.get_blob_properties(container, "none"), AzureMissingResourceHttpError)
        refused(404, lambda: service.create_blob_from_bytes(new_name(), "b", b""), AzureMissingResourceHttpError)
        refused(404, lambda: service.delete_blob(container, "none"), AzureMissingResourceHttpError)
        refused(400, lambda: service.create_container("Bad_Name"))
        wrong = BlockBlobService(connection_string=harness.CONNECTION.replace(harness.KEY, "A" * 86 + "=="))
        error = refused(403, lambda: list(wrong.list_blobs(container)))
        holds("AuthenticationFailed" in str(error) or "authenticate" in str(error), str(error))


harness.main(sys.argv[1], globals())
