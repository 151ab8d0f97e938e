// The SDK for JavaScript: @azure/storage-blob. The same checks as the clients in Python; checks.json has their names.
//
// Usage: node blobs.mjs GENERATION [CHECK...], with AZURE_STORAGE_CONNECTION_STRING, and NODE_PATH of the packages.

import assert from "node:assert/strict";
import { createHash, randomUUID } from "node:crypto";
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { Readable } from "node:stream";

// Modules do not look at NODE_PATH.
const require = createRequire(import.meta.url);
const {
  AccountSASPermissions, AccountSASResourceTypes, AccountSASServices, AnonymousCredential, BlobSASPermissions,
  BlobServiceClient, ContainerSASPermissions, generateAccountSASQueryParameters, generateBlobSASQueryParameters,
  SASProtocol, StorageSharedKeyCredential,
} = require("@azure/storage-blob");

const CONNECTION = process.env.AZURE_STORAGE_CONNECTION_STRING;
const settings = Object.fromEntries(CONNECTION.split(";").filter(Boolean).map((part) => {
  const at = part.indexOf("=");
  return [part.slice(0, at), part.slice(at + 1)];
}));
const ENDPOINT = settings.BlobEndpoint.replace(/\/$/, "");
const credential = new StorageSharedKeyCredential(settings.AccountName, settings.AccountKey);
const service = BlobServiceClient.fromConnectionString(CONNECTION);
const MIB = 1024 * 1024;
const HOUR = 3600 * 1000;
const ODD_NAMES = ["a b", "ü/ö.txt", "100%", "a+b=c&d", "x'y", "(1)", "tilde~", "semi;colon", "deep/er/and/deeper.txt", "日本"];

const newName = (prefix = "sdk") => `${prefix}-${randomUUID().slice(0, 13)}`;
const later = (milliseconds = HOUR) => new Date(Date.now() + milliseconds);

/** Bytes that are different at every place. */
function pattern(length, seed = 0) {
  const parts = [];
  for (let n = 0; n < 2048; n++) parts.push(createHash("sha256").update(`${seed}-${n}`).digest());
  const block = Buffer.concat(parts);
  return Buffer.alloc(length, block);
}

async function inContainer(work) {
  const container = service.getContainerClient(newName());
  await container.create();
  try {
    await work(container);
  } finally {
    await container.delete();
  }
}

/** `work` must be refused with this status and this code of the service. */
async function refused(status, work, code) {
  try {
    await work();
  } catch (error) {
    assert.equal(error.name, "RestError", String(error));
    assert.equal(error.statusCode, status, String(error.message));
    if (code) assert.equal(error.code ?? error.details?.errorCode, code);
    return;
  }
  assert.fail(`not refused with ${status}`);
}

async function all(iterator) {
  const found = [];
  for await (const each of iterator) found.push(each);
  return found;
}

const names = async (iterator) => (await all(iterator)).map((each) => each.name);
const read = (blob, ...range) => blob.downloadToBuffer(...range);
const put = async (container, name, data, options) => {
  const blob = container.getBlockBlobClient(name);
  await blob.uploadData(Buffer.from(data), options);
  return blob;
};
const id = (name) => Buffer.from(name).toString("base64");
const withSas = (token) => new BlobServiceClient(`${ENDPOINT}?${token}`, new AnonymousCredential());
const blobSas = (container, name, permissions, more = {}) => generateBlobSASQueryParameters({
  containerName: container.containerName, blobName: name, permissions: BlobSASPermissions.parse(permissions),
  expiresOn: later(), ...more,
}, credential).toString();
const plainGet = async (url) => {
  const answer = await fetch(url);
  return [answer.status, await answer.text()];
};

const checks = {
  async containers() {
    const container = service.getContainerClient(newName());
    assert.equal(await container.exists(), false);
    await container.create({ metadata: { owner: "me", n: "1" } });
    assert.equal(await container.exists(), true);
    assert.equal((await container.createIfNotExists()).succeeded, false);
    await refused(409, () => container.create(), "ContainerAlreadyExists");
    const before = await container.getProperties();
    assert.deepEqual(before.metadata, { owner: "me", n: "1" });
    await container.setMetadata({ other: "x" });
    const after = await container.getProperties();
    assert.deepEqual(after.metadata, { other: "x" });
    assert.notEqual(after.etag, before.etag);
    const others = [0, 1, 2].map(() => newName(container.containerName));
    for (const other of others) await service.createContainer(other);
    const prefix = container.containerName;
    assert.deepEqual(await names(service.listContainers({ prefix })), [prefix, ...others.toSorted()]);
    const pages = await all(service.listContainers({ prefix, includeMetadata: true }).byPage({ maxPageSize: 3 }));
    assert.deepEqual(pages.map((page) => page.containerItems.length), [3, 1]);
    assert.deepEqual(pages[0].containerItems[0].metadata, { other: "x" });
    for (const each of [prefix, ...others]) await service.deleteContainer(each);
    await refused(404, () => container.delete(), "ContainerNotFound");
  },

  async put_and_get() {
    await inContainer(async (container) => {
      const blob = await put(container, "b", "\0\x01hello");
      assert.equal((await read(blob)).toString(), "\0\x01hello");
      await blob.upload("grüße\n", Buffer.byteLength("grüße\n"));
      assert.equal((await read(blob)).toString(), "grüße\n");
      await blob.upload("", 0);
      assert.equal((await blob.download()).contentLength, 0);
      assert.equal(await blob.exists(), true);
      assert.equal(await container.getBlobClient("none").exists(), false);
      await blob.delete();
      assert.equal((await blob.deleteIfExists()).succeeded, false);
    });
  },

  async properties_and_metadata() {
    await inContainer(async (container) => {
      const blob = await put(container, "b", "12345", {
        blobHTTPHeaders: {
          blobContentType: "text/x-a", blobContentEncoding: "identity", blobContentLanguage: "de",
          blobContentDisposition: "inline", blobCacheControl: "no-cache",
        },
        metadata: { a: "1", b_c: "x y" },
      });
      const first = await blob.getProperties();
      assert.deepEqual(first.metadata, { a: "1", b_c: "x y" });
      assert.deepEqual(
        [first.contentLength, first.blobType, first.contentType, first.contentEncoding, first.contentLanguage,
          first.contentDisposition, first.cacheControl, first.leaseStatus, first.leaseState],
        [5, "BlockBlob", "text/x-a", "identity", "de", "inline", "no-cache", "unlocked", "available"]);
      await blob.setMetadata({ z: "9" });
      await blob.setHTTPHeaders({ blobContentType: "text/y" });
      const changed = await blob.getProperties();
      assert.deepEqual([changed.metadata, changed.contentType, changed.contentLanguage], [{ z: "9" }, "text/y", undefined]);
      assert.notEqual(changed.etag, first.etag);
      assert.equal((await read(blob)).toString(), "12345");
    });
  },

  async ranges() {
    await inContainer(async (container) => {
      const data = pattern(100_000);
      const blob = await put(container, "b", data);
      for (const [start, length] of [[0, 1], [10, 10], [99_999, 1], [50_000, 50_000]]) {
        assert.ok((await read(blob, start, length)).equals(data.subarray(start, start + length)), `${start}+${length}`);
      }
      await refused(416, () => blob.download(100_000, 2), "InvalidRange");
    });
  },

  async conditions() {
    await inContainer(async (container) => {
      const blob = await put(container, "b", "1");
      const first = (await blob.getProperties()).etag;
      await blob.upload("2", 1, { conditions: { ifMatch: first } });
      await refused(412, () => blob.upload("3", 1, { conditions: { ifMatch: first } }), "ConditionNotMet");
      await refused(409, () => blob.upload("3", 1, { conditions: { ifNoneMatch: "*" } }), "BlobAlreadyExists");
      const now = await blob.getProperties();
      await refused(304, () => blob.download(0, undefined, { conditions: { ifNoneMatch: now.etag } }));
      await refused(412, () => blob.download(0, undefined, { conditions: { ifMatch: first } }), "ConditionNotMet");
      await refused(304, () => blob.getProperties({ conditions: { ifModifiedSince: now.lastModified } }));
      await refused(412, () => blob.setMetadata({ a: "1" }, { conditions: { ifUnmodifiedSince: later(-HOUR) } }));
      await refused(412, () => blob.delete({ conditions: { ifMatch: first } }));
      await blob.delete({ conditions: { ifMatch: now.etag } });
      await refused(412, () => container.delete({ conditions: { ifUnmodifiedSince: later(-HOUR) } }));
    });
  },

  async blocks() {
    await inContainer(async (container) => {
      const blob = container.getBlockBlobClient("b");
      for (const name of ["one", "two", "six"]) await blob.stageBlock(id(name), name.repeat(1000), 3000);
      const staged = await blob.getBlockList("all");
      assert.deepEqual([staged.committedBlocks?.length ?? 0, staged.uncommittedBlocks.length], [0, 3]);
      assert.equal(await blob.exists(), false);
      await blob.commitBlockList(["two", "one", "two"].map(id), { metadata: { a: "1" } });
      assert.equal((await read(blob)).toString(), "two".repeat(1000) + "one".repeat(1000) + "two".repeat(1000));
      const listed = await blob.getBlockList("all");
      assert.deepEqual(listed.committedBlocks.map((block) => [block.name, block.size]),
        [[id("two"), 3000], [id("one"), 3000], [id("two"), 3000]]);
      assert.equal(listed.uncommittedBlocks?.length ?? 0, 0);
      await blob.stageBlock(id("mor"), "more", 4);
      await blob.commitBlockList([id("one"), id("mor")]);
      assert.equal((await read(blob)).toString(), "one".repeat(1000) + "more");
      await refused(400, () => blob.commitBlockList([id("xxx")]), "InvalidBlockList");
      await blob.stageBlock(id("new"), "x", 1);
      await refused(400, () => blob.stageBlock(id("another length"), "x", 1), "InvalidBlobOrBlock");
    });
  },

  async large_in_parallel() {
    await inContainer(async (container) => {
      const data = pattern(70 * MIB + 12_345);
      let sent = 0;
      const blob = await put(container, "b", data, {
        blockSize: 4 * MIB, maxSingleShotSize: MIB, concurrency: 4,
        onProgress: (event) => { sent = Math.max(sent, event.loadedBytes); },
      });
      assert.equal(sent, data.length);
      assert.ok((await blob.downloadToBuffer(0, undefined, { blockSize: 4 * MIB, concurrency: 4 })).equals(data));
    });
  },

  async streams() {
    await inContainer(async (container) => {
      for (const length of [0, 1, 5 * MIB, 9 * MIB + 7]) {
        const data = pattern(length, length);
        const blob = container.getBlockBlobClient("b");
        await blob.uploadStream(Readable.from([data]), 2 * MIB, 3);
        const pieces = await all((await blob.download()).readableStreamBody);
        assert.ok(Buffer.concat(pieces).equals(data), `${length} bytes`);
      }
    });
  },

  async lists() {
    await inContainer(async (container) => {
      const expected = [];
      for (let d = 0; d < 3; d++) for (let n = 0; n < 8; n++) expected.push(`dir${d}/file0${n}`);
      expected.push("top1", "top2");
      for (const name of expected) await put(container, name, name, { metadata: { n: "v" } });
      assert.deepEqual(await names(container.listBlobsFlat()), expected);
      assert.deepEqual(await names(container.listBlobsFlat({ prefix: "dir1/" })), expected.filter((n) => n.startsWith("dir1/")));
      const found = (await all(container.listBlobsByHierarchy("/"))).map((entry) => `${entry.kind} ${entry.name}`);
      assert.deepEqual(found.toSorted(), ["blob top1", "blob top2", "prefix dir0/", "prefix dir1/", "prefix dir2/"]);
      const pages = await all(container.listBlobsFlat().byPage({ maxPageSize: 7 }));
      assert.deepEqual(pages.map((page) => page.segment.blobItems.length), [7, 7, 7, 5]);
      const rest = await all(container.listBlobsFlat().byPage({ maxPageSize: 7, continuationToken: pages[0].continuationToken }));
      assert.deepEqual(rest.flatMap((page) => page.segment.blobItems.map((item) => item.name)), expected.slice(7));
      const [one] = await all(container.listBlobsFlat({ prefix: "top1", includeMetadata: true }));
      assert.deepEqual([one.metadata, one.properties.contentLength, one.properties.blobType], [{ n: "v" }, 4, "BlockBlob"]);
      assert.deepEqual(await names(container.listBlobsFlat({ prefix: "none" })), []);
    });
  },

  async odd_names() {
    await inContainer(async (container) => {
      for (const name of ODD_NAMES) await put(container, name, name);
      assert.deepEqual((await names(container.listBlobsFlat())).toSorted(), ODD_NAMES.toSorted());
      for (const name of ODD_NAMES) {
        assert.equal((await read(container.getBlobClient(name))).toString(), name);
        const signed = withSas(blobSas(container, name, "r")).getContainerClient(container.containerName).getBlobClient(name);
        assert.equal((await read(signed)).toString(), name, `${name} by signature`);
        await container.deleteBlob(name);
      }
    });
  },

  async copies() {
    await inContainer(async (container) => {
      const small = await put(container, "small", "abc", { metadata: { a: "1" } });
      const large = await put(container, "large", pattern(5 * MIB));
      for (const source of [small, large]) {
        const target = container.getBlobClient(`copy-${source.name}`);
        const poller = await target.beginCopyFromURL(source.url);
        assert.equal((await poller.pollUntilDone()).copyStatus, "success");
      }
      assert.ok((await read(container.getBlobClient("copy-large"))).equals(pattern(5 * MIB)));
      const target = container.getBlobClient("copy-small");
      const properties = await target.getProperties();
      assert.deepEqual([properties.metadata, properties.copyStatus], [{ a: "1" }, "success"]);
      await refused(404, () => target.beginCopyFromURL(container.getBlobClient("none").url));
    });
  },

  async copies_aborted() {
    await inContainer(async (container) => {
      const source = await put(container, "a", "abc");
      const target = container.getBlobClient("b");
      const { copyId } = await (await target.beginCopyFromURL(source.url)).pollUntilDone();
      await refused(409, () => target.abortCopyFromURL(copyId), "NoPendingCopyOperation");
    });
  },

  async copies_from_urls() {
    await inContainer(async (container) => {
      const source = await put(container, "a", pattern(1000));
      const url = `${source.url}?${blobSas(container, "a", "r")}`;
      assert.equal((await container.getBlobClient("b").syncCopyFromURL(url)).copyStatus, "success");
      assert.ok((await read(container.getBlobClient("b"))).equals(pattern(1000)));
      const blocks = container.getBlockBlobClient("c");
      await blocks.stageBlockFromURL(id("blk"), url, 10, 100);
      await blocks.commitBlockList([id("blk")]);
      assert.ok((await read(blocks)).equals(pattern(1000).subarray(10, 110)));
      const whole = container.getBlockBlobClient("d");
      await whole.syncUploadFromURL(url);
      assert.ok((await read(whole)).equals(pattern(1000)));
    });
  },

  async blob_sas() {
    await inContainer(async (container) => {
      const blob = await put(container, "b", "secret");
      const signed = (name, ...more) => withSas(blobSas(container, name, ...more))
        .getContainerClient(container.containerName).getBlockBlobClient(name);
      assert.deepEqual(await plainGet(signed("b", "r").url), [200, "secret"]);
      assert.deepEqual(await plainGet(await blob.generateSasUrl({ permissions: BlobSASPermissions.parse("r"), expiresOn: later() })),
        [200, "secret"]);
      await refused(403, () => signed("b", "r").upload("x", 1), "AuthorizationPermissionMismatch");
      await signed("n", "w").uploadData(pattern(MIB));
      assert.ok((await read(container.getBlobClient("n"))).equals(pattern(MIB)));
      await signed("c", "c").upload("1", 1);
      await refused(403, () => signed("c", "c").upload("2", 1));
      for (const more of [{ expiresOn: later(-HOUR) }, { startsOn: later(), expiresOn: later(2 * HOUR) }, { ipRange: { start: "10.9.8.7" } }]) {
        assert.equal((await plainGet(signed("b", "r", more).url))[0], 403, JSON.stringify(more));
      }
      const local = signed("b", "r", { ipRange: { start: "127.0.0.1", end: "127.0.0.9" }, protocol: SASProtocol.HttpsAndHttp });
      assert.equal((await plainGet(local.url))[0], 200);
      const shown = await signed("b", "r", { contentType: "text/z", cacheControl: "max-age=1" }).download();
      assert.deepEqual([shown.contentType, shown.cacheControl], ["text/z", "max-age=1"]);
      assert.equal((await plainGet(signed("b", "r").url.replace("sig=", "sig=A")))[0], 403);
    });
  },

  async container_sas() {
    await inContainer(async (container) => {
      await put(container, "a", "1");
      await put(container, "b", "1");
      const sas = (permissions) => withSas(generateBlobSASQueryParameters({
        containerName: container.containerName, permissions: ContainerSASPermissions.parse(permissions), expiresOn: later(),
      }, credential)).getContainerClient(container.containerName);
      assert.deepEqual(await names(sas("l").listBlobsFlat()), ["a", "b"]);
      await refused(403, () => read(sas("l").getBlobClient("a")));
      assert.equal((await read(sas("r").getBlobClient("b"))).toString(), "1");
      await refused(403, () => names(sas("r").listBlobsFlat()));
      await put(sas("w"), "new/one", "2");
      await refused(403, () => sas("w").deleteBlob("a"));
      await sas("d").deleteBlob("a");
      assert.deepEqual(await names(sas("l").listBlobsFlat()), ["b", "new/one"]);
    });
  },

  async account_sas() {
    await inContainer(async (container) => {
      const sas = (types, permissions) => withSas(generateAccountSASQueryParameters({
        services: AccountSASServices.parse("b").toString(), resourceTypes: AccountSASResourceTypes.parse(types).toString(),
        permissions: AccountSASPermissions.parse(permissions), expiresOn: later(),
      }, credential));
      const everything = sas("sco", "rwdlac");
      const blob = await put(everything.getContainerClient(container.containerName), "b", "1");
      assert.equal((await read(blob)).toString(), "1");
      assert.deepEqual(await names(everything.listContainers({ prefix: container.containerName })), [container.containerName]);
      const objects = sas("o", "r").getContainerClient(container.containerName);
      assert.equal((await read(objects.getBlobClient("b"))).toString(), "1");
      await refused(403, () => names(objects.listBlobsFlat()), "AuthorizationResourceTypeMismatch");
      await refused(403, () => put(objects, "b", "2"));
    });
  },

  async stored_policies() {
    await inContainer(async (container) => {
      await put(container, "b", "1");
      await container.setAccessPolicy(undefined, [
        { id: "readers", accessPolicy: { permissions: "r", startsOn: later(-HOUR), expiresOn: later() } }]);
      const found = await container.getAccessPolicy();
      assert.deepEqual(found.signedIdentifiers.map((each) => [each.id, each.accessPolicy.permissions]), [["readers", "r"]]);
      const reader = withSas(generateBlobSASQueryParameters(
        { containerName: container.containerName, identifier: "readers" }, credential)).getContainerClient(container.containerName);
      assert.equal((await read(reader.getBlobClient("b"))).toString(), "1");
      await refused(403, () => names(reader.listBlobsFlat()));
      await container.setAccessPolicy(undefined, []);
      assert.deepEqual((await container.getAccessPolicy()).signedIdentifiers, []);
      await refused(403, () => read(reader.getBlobClient("b")), "AuthenticationFailed");
    });
  },

  async public_access() {
    await inContainer(async (container) => {
      const blob = await put(container, "b", "1");
      const listing = `${container.url}?restype=container&comp=list`;
      assert.ok((await plainGet(blob.url))[0] >= 400);
      await container.setAccessPolicy("blob");
      assert.equal((await container.getAccessPolicy()).blobPublicAccess, "blob");
      assert.deepEqual(await plainGet(blob.url), [200, "1"]);
      assert.ok((await plainGet(listing))[0] >= 400);
      await container.setAccessPolicy("container");
      assert.equal((await plainGet(listing))[0], 200);
      await container.setAccessPolicy();
      assert.ok((await plainGet(blob.url))[0] >= 400);
    });
  },

  async leases_of_blobs() {
    await inContainer(async (container) => {
      const blob = await put(container, "b", "1");
      const lease = blob.getBlobLeaseClient();
      await lease.acquireLease(15);
      const found = await blob.getProperties();
      assert.deepEqual([found.leaseStatus, found.leaseState, found.leaseDuration], ["locked", "leased", "fixed"]);
      await refused(409, () => blob.getBlobLeaseClient().acquireLease(15), "LeaseAlreadyPresent");
      await refused(412, () => blob.upload("2", 1), "LeaseIdMissing");
      await refused(412, () => blob.delete(), "LeaseIdMissing");
      await blob.upload("2", 1, { conditions: { leaseId: lease.leaseId } });
      assert.equal((await read(blob)).toString(), "2");
      await lease.renewLease();
      const old = lease.leaseId;
      await lease.changeLease("0f1a2b3c-4d5e-6f70-8192-a3b4c5d6e7f8");
      await refused(412, () => blob.setMetadata({}, { conditions: { leaseId: old } }), "LeaseIdMismatchWithBlobOperation");
      await lease.releaseLease();
      await blob.getBlobLeaseClient().acquireLease(-1);
      assert.equal((await blob.getProperties()).leaseDuration, "infinite");
      assert.equal((await blob.getBlobLeaseClient().breakLease(0)).leaseTime, 0);
      assert.equal((await blob.getProperties()).leaseState, "broken");
      await blob.delete();
    });
  },

  async leases_of_containers() {
    const container = service.getContainerClient(newName());
    await container.create();
    const lease = container.getBlobLeaseClient();
    await lease.acquireLease(-1);
    assert.equal((await container.getProperties()).leaseState, "leased");
    await refused(412, () => container.delete(), "LeaseIdMissing");
    await put(container, "b", "1");
    await lease.renewLease();
    await lease.breakLease(0);
    const next = container.getBlobLeaseClient();
    await next.acquireLease(15);
    await container.delete({ conditions: { leaseId: next.leaseId } });
  },

  async snapshots() {
    await inContainer(async (container) => {
      const blob = await put(container, "b", "old", { metadata: { a: "1" } });
      const { snapshot } = await blob.createSnapshot();
      await blob.upload("new", 3);
      const old = blob.withSnapshot(snapshot);
      assert.deepEqual([(await read(old)).toString(), (await read(blob)).toString()], ["old", "new"]);
      const listed = await all(container.listBlobsFlat({ includeSnapshots: true }));
      assert.deepEqual(listed.map((each) => each.snapshot ?? "").toSorted(), ["", snapshot]);
      assert.deepEqual(await names(container.listBlobsFlat()), ["b"]);
      await refused(409, () => blob.delete(), "SnapshotsPresent");
      await old.delete();
      await refused(404, () => read(old));
      await blob.createSnapshot();
      await blob.delete({ deleteSnapshots: "include" });
      assert.deepEqual(await names(container.listBlobsFlat({ includeSnapshots: true })), []);
    });
  },

  async copies_of_snapshots() {
    await inContainer(async (container) => {
      const blob = await put(container, "b", "old");
      const old = blob.withSnapshot((await blob.createSnapshot()).snapshot);
      await blob.upload("new", 3);
      for (const target of [container.getBlobClient("other"), blob]) {
        await (await target.beginCopyFromURL(old.url)).pollUntilDone();
        assert.equal((await read(target)).toString(), "old");
      }
    });
  },

  async append_blobs() {
    await inContainer(async (container) => {
      const log = container.getAppendBlobClient("log");
      await log.create();
      const first = await log.appendBlock("one\n", 4);
      const second = await log.appendBlock("two\n", 4, { conditions: { appendPosition: 4 } });
      assert.deepEqual([first.blobAppendOffset, second.blobAppendOffset, second.blobCommittedBlockCount], ["0", "4", 2]);
      await refused(412, () => log.appendBlock("x", 1, { conditions: { appendPosition: 4 } }), "AppendPositionConditionNotMet");
      await refused(412, () => log.appendBlock("x", 1, { conditions: { maxSize: 8 } }), "MaxBlobSizeConditionNotMet");
      assert.equal((await read(log)).toString(), "one\ntwo\n");
      assert.equal((await log.getProperties()).blobType, "AppendBlob");
      await refused(409, () => container.getBlockBlobClient("log").stageBlock(id("blk"), "x", 1), "InvalidBlobType");
    });
  },

  async service_properties() {
    const before = await service.getProperties();
    try {
      await service.setProperties({ cors: [{
        allowedOrigins: "http://example.com", allowedMethods: "GET,PUT", allowedHeaders: "x-ms-meta-*",
        exposedHeaders: "x-ms-*", maxAgeInSeconds: 60,
      }] });
      const [rule] = (await service.getProperties()).cors;
      assert.deepEqual([rule.allowedOrigins, rule.allowedMethods, rule.maxAgeInSeconds], ["http://example.com", "GET,PUT", 60]);
    } finally {
      await service.setProperties({ cors: before.cors ?? [] });
    }
    assert.equal((await service.getAccountInfo()).accountKind, "StorageV2");
  },

  async checksums() {
    await inContainer(async (container) => {
      const data = pattern(1000);
      const md5 = createHash("md5").update(data).digest();
      const blob = await put(container, "b", data);
      assert.deepEqual(Buffer.from((await blob.getProperties()).contentMD5), md5);
      const wrong = { blobHTTPHeaders: { blobContentMD5: Buffer.alloc(16, 1) } };
      await refused(400, () => container.getBlockBlobClient("d").upload(data, data.length, wrong), "Md5Mismatch");
      assert.equal(await container.getBlobClient("d").exists(), false);
      await container.getBlockBlobClient("e").stageBlock(id("x"), data, data.length, { transactionalContentMD5: md5 });
      const part = await blob.download(0, 100, { rangeGetContentMD5: true });
      assert.deepEqual(Buffer.from(part.contentMD5), createHash("md5").update(data.subarray(0, 100)).digest());
    });
  },

  async errors() {
    await inContainer(async (container) => {
      const none = container.getBlockBlobClient("none");
      await refused(404, () => none.download(), "BlobNotFound");
      await refused(404, () => none.getProperties(), "BlobNotFound");
      await refused(404, () => none.delete(), "BlobNotFound");
      await refused(404, () => put(service.getContainerClient(newName()), "b", "1"), "ContainerNotFound");
      await refused(400, () => service.createContainer("Bad_Name"), "InvalidResourceName");
      const wrong = new BlobServiceClient(ENDPOINT, new StorageSharedKeyCredential(settings.AccountName, `${"A".repeat(86)}==`));
      await refused(403, () => names(wrong.getContainerClient(container.containerName).listBlobsFlat()), "AuthenticationFailed");
    });
  },
};

const [generation, ...only] = process.argv.slice(2);
const all_checks = JSON.parse(readFileSync(new URL("checks.json", import.meta.url), "utf8"));
const wanted = Object.keys(all_checks).filter((name) => all_checks[name].includes(generation));
const problems = [];
let done = 0;
for (const name of wanted) {
  if (only.length > 0 && !only.includes(name)) continue;
  if (!checks[name]) {
    problems.push(`${name}: not in this client`);
    continue;
  }
  try {
    await checks[name]();
    done += 1;
  } catch (error) {
    problems.push(`${name}:\n${error.stack}`);
  }
}
for (const problem of problems) console.log(`PROBLEM ${problem}`);
console.log(`${generation}: ${done} checks, ${problems.length} problems`);
process.exit(problems.length > 0 ? 1 : 0);
