// supabase-js's storage client, from a bucket's creation to its deletion.
import { createClient } from "@supabase/supabase-js";

const [url, secret, publishable, bucket] = process.argv.slice(2);
const options = {
  auth: { autoRefreshToken: false, persistSession: false },
  realtime: { transport: class {} }, // Node 20 has no WebSocket, and none is opened here
};
const service = createClient(url, secret, options).storage;
const visitor = createClient(url, publishable, options).storage;
const must = ({ data, error }) => {
  if (error) throw error;
  return data;
};
const refusal = ({ error }) => [error.status, error.statusCode, error.message];
const text = async (answer) => must(await answer).text();

must(await service.createBucket(bucket, { public: false, fileSizeLimit: "20KB", allowedMimeTypes: ["text/plain"] }));
const files = service.from(bucket);
const plain = { contentType: "text/plain" };
const metadata = { origin: "naïve", tags: [1, 2] };

const uploads = [
  must(await files.upload("a/blob.txt", new Blob(["blob"], { type: "text/plain" }), { metadata, cacheControl: "60" })),
  must(await files.upload("a/buffer.txt", Buffer.from("buffer"), { ...plain, metadata })),
  must(await files.upload("a/text.txt", "text", plain)),
  must(await files.upload("a/stream.txt", new Blob(["stream"]).stream(), plain)),
];
const contents = await Promise.all(["blob", "buffer", "text", "stream"].map((name) => text(files.download(`a/${name}.txt`))));
const infos = [must(await files.info("a/blob.txt")), must(await files.info("a/buffer.txt"))];

const duplicate = refusal(await files.upload("a/text.txt", "again", plain));
must(await files.upload("a/text.txt", "upserted", { ...plain, upsert: true }));
const upserted = await text(files.download("a/text.txt"));
must(await files.update("a/text.txt", "updated", plain));
const updated = await text(files.download("a/text.txt"));

const { signedUrl } = must(await files.createSignedUrl("a/text.txt", 60, { download: "ü.txt" }));
const signed = await fetch(signedUrl);
const many = must(await files.createSignedUrls(["a/text.txt", "nowhere"], 60));
const { token } = must(await files.createSignedUploadUrl("b/signed.txt"));
must(await visitor.from(bucket).uploadToSignedUrl("b/signed.txt", token, new Blob(["signed"], { type: "text/plain" })));
const uploaded = await text(files.download("b/signed.txt"));

const listed = must(await files.list("", { sortBy: { column: "name", order: "asc" } }));
const page = must(await files.list("a", { limit: 2, offset: 1, search: "" }));
const second = must(await files.listV2({ prefix: "a/", limit: 3, with_delimiter: true }));
const rest = must(await files.listV2({ prefix: "a/", limit: 3, with_delimiter: true, cursor: second.nextCursor }));

must(await files.move("a/text.txt", "c/moved.txt"));
must(await files.copy("c/moved.txt", "c/copied.txt"));
const exists = [await files.exists("a/text.txt"), await files.exists("c/copied.txt")].map(({ data }) => data);
const removed = must(await files.remove(["c/moved.txt", "nowhere"]));

must(await service.updateBucket(bucket, { public: true }));
const { publicUrl } = must(visitor.from(bucket).getPublicUrl("c/copied.txt", { download: true }));
const shown = await fetch(publicUrl);
const settings = must(await service.getBucket(bucket));

const refused = {
  duplicate,
  large: refusal(await files.upload("large.txt", "x".repeat(20_001), plain)),
  largeForm: refusal(await files.upload("large.txt", new Blob(["x".repeat(20_001)], { type: "text/plain" }))),
  image: refusal(await files.upload("image.png", "x", { contentType: "image/png" })),
  unicode: refusal(await files.upload("naïve.txt", "x", plain)),
  missing: refusal(await files.info("nowhere")),
  visitor: refusal(await visitor.from(bucket).upload("visitor.txt", "x", plain)),
  full: refusal(await service.deleteBucket(bucket)),
};

const emptied = must(await service.emptyBucket(bucket)).message;
const deleted = must(await service.deleteBucket(bucket)).message;
console.log(
  JSON.stringify({
    paths: uploads.map(({ path, fullPath, id }) => [path, fullPath === `${bucket}/${path}`, typeof id]),
    contents,
    metadata: infos.map(({ metadata }) => metadata),
    cacheControl: infos.map(({ cacheControl }) => cacheControl),
    upserted,
    updated,
    signed: [await signed.text(), signed.headers.get("content-disposition")],
    many: many.map(({ path, error, signedUrl }) => [path, error, typeof signedUrl]),
    uploaded,
    listed: listed.map(({ name, id, metadata }) => [name, id, metadata]),
    page: page.map(({ name, metadata }) => [name, metadata.size, metadata.mimetype]),
    pages: [second, rest].map(({ hasNext, objects }) => [hasNext, objects.map(({ name }) => name)]),
    exists,
    removed: removed.map(({ name }) => name),
    shown: [await shown.text(), shown.headers.get("content-disposition")],
    settings: [settings.public, settings.file_size_limit, settings.allowed_mime_types],
    refused,
    emptied,
    deleted,
  }),
);
