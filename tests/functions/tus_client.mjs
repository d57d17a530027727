// tus-js-client sends one file to a signed address, in chunks of 6 MiB: once broken off after a chunk, then taken up again.
import { readFileSync } from "node:fs";
import { Upload } from "tus-js-client";

const [endpoint, token, bucketName, objectName, path] = process.argv.slice(2);
const content = readFileSync(path);
const chunkSize = 6 * 1024 * 1024;

const send = (uploadUrl, until) =>
  new Promise((resolve, reject) => {
    const upload = new Upload(content, {
      endpoint,
      uploadUrl,
      chunkSize,
      headers: { "x-signature": token },
      metadata: { bucketName, objectName, contentType: "application/octet-stream" },
      retryDelays: [],
      onError: reject,
      onSuccess: () => resolve({ url: upload.url, done: true }),
      onChunkComplete: (_, accepted) => {
        if (until && accepted >= until) upload.abort().then(() => resolve({ url: upload.url, done: false }));
      },
    });
    upload.start();
  });

const first = await send(undefined, chunkSize);
const second = await send(first.url);
console.log(JSON.stringify({ first: first.done, second: second.done }));
