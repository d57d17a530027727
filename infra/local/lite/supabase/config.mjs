// @supabase/lite's configuration. An exported `connection` replaces its own driver set-up, and each entry
// below cures one difference from PostgREST or GoTrue; tests/infra/test_lite.py says which are still needed.
import { createPostgresConnection } from "@supabase/lite/postgres";
import postgres from "postgres";

const environment = process.env;
const url = environment.LITE_DB_URL;

// PostgREST and GoTrue print ISO 8601; the driver passes PostgreSQL's own text through.
const isoDate = (text) => text?.replace(" ", "T").replace(/([+-]\d\d)$/, "$1:00") ?? null;

// lite stringifies objects and arrays before the driver does it again: without this, user metadata is a JSON string.
const json = (value) => (typeof value === "string" && /^\s*(\{[\s\S]*\}|\[[\s\S]*\])\s*$/.test(value) ? value : JSON.stringify(value));

const types = {
  jsonb: { to: 3802, from: [3802], parse: (text) => JSON.parse(text), serialize: json },
  numeric: { to: 1700, from: [1700], parse: (text) => (Number.isFinite(+text) ? +text : text), serialize: String },
  bytea: { to: 17, from: [17], parse: (text) => text, serialize: (value) => value },
  timestamptz: { to: 1184, from: [1184], parse: isoDate, serialize: (text) => text },
  timestamp: { to: 1114, from: [1114], parse: (text) => text.replace(" ", "T"), serialize: (text) => text },
};

const connection = createPostgresConnection({
  url,
  postgresOptions: { max: 20, onnotice: () => {}, types },
});

// A private field: keeps lite from granting every table of an RLS schema to anon and authenticated.
connection.rlsState = "active";

// A JSON array sent for a vector must reach PostgreSQL as '[1,2,3]'; the driver would send '1,2,3'.
async function serializeVectors() {
  const found = await connection.driver`select oid::int from pg_type where typname in ('vector', 'halfvec', 'sparsevec')`;
  for (const { oid } of found) {
    connection.driver.options.serializers[oid] = (value) => (Array.isArray(value) ? JSON.stringify(value) : String(value));
  }
}
await serializeVectors();

// PostgREST's own signal for a changed schema: notify pgrst, 'reload schema'.
if (process.argv.includes("start")) {
  const listener = postgres(url, { max: 1, onnotice: () => {} });
  await listener.listen("pgrst", async () => {
    await connection.clearSchemaCache();
    await serializeVectors();
  });
}

export default {
  connection,
  api: { port: Number(environment.LITE_PORT), schemas: ["public"], max_rows: 1000 },
  auth: {
    enabled: true,
    site_url: environment.SUPABASE_URL,
    jwt_secret: environment.SUPABASE_JWT_SECRET,
    jwt_expiry: 3600,
    enable_signup: true,
    publishable_key: environment.SUPABASE_PUBLISHABLE_KEY,
    secret_key: environment.SUPABASE_SECRET_KEY,
    email: { enable_confirmations: false },
  },
};
