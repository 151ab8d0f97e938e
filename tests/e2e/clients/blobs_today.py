"""Snapshots, append blobs, tiers and lists by the SDK of today. Ends with an error if anything is not as it should be."""

import os
import sys

from azure.core.exceptions import HttpResponseError, ResourceNotFoundError
from azure.storage.blob import BlobServiceClient, BlobType, StandardBlobTier


def refused(code, call, *arguments, kind=HttpResponseError, **options):
    """The call has to fail with this code."""
    try:
        call(*arguments, **options)
    except kind as error:
        assert error.error_code == code, (error.error_code, code)
        return
    raise AssertionError(f"{call} was not refused with {code}")


def snapshots(container):
    blob = container.get_blob_client("dir/b")
    blob.upload_blob(b"one" * 50_000, metadata={"CamelCase": "1", "lower": "2"})
    first = blob.create_snapshot()
    second = blob.create_snapshot(metadata={"Second": "x"})
    blob.upload_blob(b"two", overwrite=True)
    old = container.get_blob_client("dir/b", snapshot=first["snapshot"])
    assert old.download_blob().readall() == b"one" * 50_000
    assert old.get_blob_properties().metadata == {"CamelCase": "1", "lower": "2"}
    assert old.get_blob_properties().etag == first["etag"]
    listed = [(b.name, b.snapshot, b.metadata or {}) for b in container.list_blobs(include=["snapshots", "metadata"])]
    assert listed == [
        ("dir/b", first["snapshot"], {"CamelCase": "1", "lower": "2"}),
        ("dir/b", second["snapshot"], {"Second": "x"}),
        ("dir/b", None, {}),
    ], listed
    refused("SnapshotsPresent", blob.delete_blob)
    old.delete_blob()
    refused("BlobNotFound", old.download_blob, kind=ResourceNotFoundError)
    blob.delete_blob(delete_snapshots="only")
    assert blob.download_blob().readall() == b"two"
    blob.create_snapshot()
    blob.delete_blob(delete_snapshots="include")
    assert not blob.exists()


def appends(container):
    log = container.get_blob_client("log")
    # The SDK appends, and makes the blob when there is none.
    log.upload_blob(b"first\n", blob_type=BlobType.AppendBlob)
    log.upload_blob(b"second\n", blob_type=BlobType.AppendBlob)
    done = log.append_block(b"third\n", validate_content=True, appendpos_condition=13)
    assert (done["blob_append_offset"], done["blob_committed_block_count"]) == ("13", 3), done
    refused("AppendPositionConditionNotMet", log.append_block, b"x", appendpos_condition=1)
    refused("MaxBlobSizeConditionNotMet", log.append_block, b"x", maxsize_condition=19)
    large = bytes(range(256)) * 4096 * 5
    log.upload_blob(large, blob_type=BlobType.AppendBlob)
    whole = log.download_blob().readall()
    assert whole == b"first\nsecond\nthird\n" + large
    properties = log.get_blob_properties()
    assert properties.blob_type == BlobType.AppendBlob
    assert properties.append_blob_committed_block_count >= 4
    refused("InvalidBlobType", log.stage_block, "aaaa", b"x")
    log.create_append_blob()
    assert log.get_blob_properties().size == 0
    log.delete_blob()


def tiers(container):
    blob = container.get_blob_client("tiered")
    blob.upload_blob(b"x", standard_blob_tier=StandardBlobTier.COOL)
    assert blob.get_blob_properties().blob_tier == "Cool"
    blob.set_standard_blob_tier(StandardBlobTier.ARCHIVE)
    refused("BlobArchived", blob.download_blob)
    assert [b.blob_tier for b in container.list_blobs()] == ["Archive"]
    blob.set_standard_blob_tier(StandardBlobTier.HOT)
    properties = blob.get_blob_properties()
    assert (properties.blob_tier, properties.blob_tier_change_time is not None) == ("Hot", True)
    assert blob.download_blob().readall() == b"x"
    blob.delete_blob()


def lists(container):
    names = ["a", "a--b/1", "a--b/2", "odd\ufffe<", "odd\x01&", "z"]
    for name in names:
        container.upload_blob(name, b"")
    container.get_blob_client("staged").stage_block("id00", b"x")
    assert [b.name for b in container.list_blobs()] == sorted(names), [b.name for b in container.list_blobs()]
    everything = [b.name for b in container.list_blobs(include=["uncommittedblobs", "snapshots", "copy", "deleted"])]
    assert everything == sorted([*names, "staged"]), everything
    for size in range(1, 9):
        pages = container.list_blobs(include=["uncommittedblobs"], results_per_page=size).by_page()
        joined = [b.name for page in pages for b in page]
        assert joined == everything, (size, joined)
    late = [b.name for b in container.list_blobs(start_from="a--b/2")]
    assert late == sorted(names)[2:], late
    cut = [b.name for b in container.walk_blobs(delimiter="--")]
    assert sorted(cut) == ["a", "a--", "odd\x01&", "odd\ufffe<", "z"], cut
    for name in names:
        container.delete_blob(name)


def main():
    service = BlobServiceClient.from_connection_string(os.environ["AZURE_STORAGE_CONNECTION_STRING"])
    container = service.create_container("kinds")
    for part in (snapshots, appends, tiers, lists):
        part(container)
        print(part.__name__, "ok")
    service.delete_container("kinds")


if __name__ == "__main__":
    sys.exit(main())
