#!/usr/bin/env python3
"""Leases, copies, conditions and service properties with the blob SDK of today: `blob_rules_today.py <case>`.

Run it with the variables that `kiln env` prints. Each case ends with an error if something is not as it should be.
"""

import base64
import datetime
import hashlib
import os
import sys
import uuid

from azure.core import MatchConditions
from azure.core.exceptions import HttpResponseError, ResourceExistsError, ResourceModifiedError, ResourceNotFoundError
from azure.storage.blob import (
    BlobBlock, BlobSasPermissions, BlobServiceClient, ContentSettings, CorsRule, generate_blob_sas)


def code_of(call, kind=HttpResponseError):
    """The error code that a call ends with."""
    try:
        call()
    except kind as error:
        return str(getattr(error.error_code, "value", error.error_code))
    raise AssertionError("this should have been refused")


def leases(service):
    container = service.create_container("leases")
    blob = container.get_blob_client("b")
    blob.upload_blob(b"one")
    lease = blob.acquire_lease(lease_duration=15)
    properties = blob.get_blob_properties()
    assert (properties.lease.status, properties.lease.state, properties.lease.duration) == ("locked", "leased", "fixed")
    assert code_of(lambda: blob.upload_blob(b"two", overwrite=True)) == "LeaseIdMissing"
    assert code_of(lambda: blob.acquire_lease()) == "LeaseAlreadyPresent"
    assert code_of(lambda: blob.set_blob_metadata({"k": "v"}, lease=str(uuid.uuid4()))) == "LeaseIdMismatchWithBlobOperation"
    blob.upload_blob(b"two", overwrite=True, lease=lease)
    blob.stage_block("AAAA", b"three", lease=lease)
    blob.commit_block_list([BlobBlock("AAAA")], lease=lease)
    lease.renew()
    lease.change(str(uuid.uuid4()))
    assert blob.download_blob(lease=lease).readall() == b"three"
    assert lease.break_lease(lease_break_period=0) == 0
    assert code_of(lease.renew) == "LeaseIsBrokenAndCannotBeRenewed"
    assert [one.lease.state for one in container.list_blobs()] == ["broken"]
    lease.release()
    with_id = blob.acquire_lease(lease_id=str(uuid.uuid4()))
    assert code_of(blob.delete_blob) == "LeaseIdMissing"
    blob.delete_blob(lease=with_id)

    lease = container.acquire_lease()
    assert code_of(container.delete_container) == "LeaseIdMissing"
    assert container.get_container_properties().lease.state == "leased"
    container.delete_container(lease=lease)


def copies(service):
    container = service.create_container("copies")
    body = os.urandom(3_000_000)
    md5 = hashlib.md5(body).digest()
    source = container.get_blob_client("source")
    source.upload_blob(body, metadata={"k": "v"}, content_settings=ContentSettings(content_type="a/b"), max_concurrency=2)
    token = generate_blob_sas(
        service.account_name, "copies", "source", account_key=service.credential.account_key,
        permission=BlobSasPermissions(read=True),
        expiry=datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(minutes=5))
    url = f"{source.url}?{token}"

    copy = container.get_blob_client("copy")
    started = copy.start_copy_from_url(source.url)
    assert started["copy_status"] == "success", started
    properties = copy.get_blob_properties()
    assert (properties.copy.id, properties.copy.status) == (started["copy_id"], "success"), properties.copy
    assert properties.copy.progress == "3000000/3000000" and properties.copy.source == source.url, properties.copy
    assert (properties.metadata, properties.content_settings.content_type) == ({"k": "v"}, "a/b")
    assert copy.download_blob().readall() == body
    assert code_of(lambda: copy.abort_copy(started["copy_id"])) == "NoPendingCopyOperation"

    synced = container.get_blob_client("synced")
    done = synced.start_copy_from_url(url, requires_sync=True)
    assert done["copy_status"] == "success", done
    put = container.get_blob_client("put")
    put.upload_blob_from_url(url, source_content_md5=md5, content_settings=ContentSettings(content_type="c/d"), metadata={"n": "w"})
    properties = put.get_blob_properties()
    assert (properties.metadata, properties.content_settings.content_type) == ({"n": "w"}, "c/d"), properties
    assert put.download_blob().readall() == body
    made = container.get_blob_client("made")
    part = hashlib.md5(body[1_000_000:1_500_000]).digest()
    made.stage_block_from_url("AAAA", url, source_offset=1_000_000, source_length=500_000, source_content_md5=part)
    made.stage_block_from_url("BBBB", url, source_offset=0, source_length=10)
    made.commit_block_list([BlobBlock("AAAA"), BlobBlock("BBBB")])
    assert made.download_blob().readall() == body[1_000_000:1_500_000] + body[:10]

    stale = {"source_etag": "0x1", "source_match_condition": MatchConditions.IfNotModified}
    assert code_of(lambda: copy.start_copy_from_url(source.url, **stale)) == "SourceConditionNotMet"
    wrong = base64.b64decode("AAAAAAAAAAAAAAAAAAAAAA==")
    assert code_of(lambda: put.upload_blob_from_url(url, overwrite=True, source_content_md5=wrong)) == "Md5Mismatch"
    missing = container.get_blob_client("none").url
    assert code_of(lambda: copy.start_copy_from_url(missing), ResourceNotFoundError) == "BlobNotFound"
    unreachable = "http://127.0.0.1:1/secret"
    assert code_of(lambda: copy.start_copy_from_url(unreachable)) == "CannotVerifyCopySource"
    source.delete_blob()
    assert copy.download_blob().readall() == body, "a copy outlives its source"
    container.delete_container()


def conditions(service):
    container = service.create_container("conditions")
    blob = container.get_blob_client("b")
    etag = blob.upload_blob(b"one")["etag"]
    assert code_of(lambda: blob.upload_blob(b"x"), ResourceExistsError) == "BlobAlreadyExists"
    old = {"etag": "0x1", "match_condition": MatchConditions.IfNotModified}
    same = {"etag": etag, "match_condition": MatchConditions.IfNotModified}
    changed = {"etag": etag, "match_condition": MatchConditions.IfModified}
    for call in (blob.download_blob, blob.get_blob_properties, blob.delete_blob, blob.acquire_lease,
                 lambda **more: blob.set_blob_metadata({"k": "v"}, **more),
                 lambda **more: blob.set_http_headers(ContentSettings(), **more),
                 lambda **more: blob.upload_blob(b"x", overwrite=True, **more)):
        assert code_of(lambda: call(**old), ResourceModifiedError) == "ConditionNotMet", call
    assert blob.download_blob(**same).readall() == b"one"
    blob.set_blob_metadata({"k": "v"}, **same)
    assert code_of(lambda: blob.delete_blob(**same), ResourceModifiedError) == "ConditionNotMet"
    blob.delete_blob(**changed)
    ahead = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(days=1)
    assert code_of(lambda: container.delete_container(if_modified_since=ahead), ResourceModifiedError) == "ConditionNotMet"
    container.delete_container(if_unmodified_since=ahead)


def properties(service):
    rule = CorsRule(["https://a.org"], ["GET", "PUT"], max_age_in_seconds=9, exposed_headers=["*"], allowed_headers=["x-ms-*"])
    service.set_service_properties(cors=[rule])
    found = service.get_service_properties()
    assert [one.allowed_origins for one in found["cors"]] == ["https://a.org"], found
    service.set_service_properties(target_version="2019-02-02")
    found = service.get_service_properties()
    assert (found["target_version"], len(found["cors"])) == ("2019-02-02", 1), found
    service.set_service_properties(cors=[])
    assert service.get_service_properties()["cors"] == []


CASES = {case.__name__: case for case in (leases, copies, conditions, properties)}

if __name__ == "__main__":
    CASES[sys.argv[1]](BlobServiceClient.from_connection_string(os.environ["AZURE_STORAGE_CONNECTION_STRING"]))
    print("as it should be")
