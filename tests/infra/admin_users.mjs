// supabase-js's admin API on one user, from creation to deletion.
import { createClient } from "@supabase/supabase-js";

const [url, secret, publishable, email] = process.argv.slice(2);
const options = {
  auth: { autoRefreshToken: false, persistSession: false },
  realtime: { transport: class {} }, // Node 20 has no WebSocket, and none is opened here
};
const { admin } = createClient(url, secret, options).auth;
const visitor = createClient(url, publishable, options).auth;
const must = ({ data, error }) => {
  if (error) throw error;
  return data;
};

const password = "correct horse";
const { user: created } = must(
  await admin.createUser({ email, password, email_confirm: true, app_metadata: { role: "editor" } }),
);
const { user: signedIn } = must(await visitor.signInWithPassword({ email, password }));
const { user: updated } = must(await admin.updateUserById(created.id, { user_metadata: { theme: "dark" } }));
const { user: read } = must(await admin.getUserById(created.id));
const page = must(await admin.listUsers({ page: 1, perPage: 1 }));
const duplicate = await admin.createUser({ email, password });
must(await admin.deleteUser(created.id));
const gone = await admin.getUserById(created.id);

console.log(
  JSON.stringify({
    sameUser: [signedIn, updated, read, page.users[0]].every(({ id }) => id === created.id),
    role: read.app_metadata.role,
    theme: read.user_metadata.theme,
    total: page.total,
    duplicate: [duplicate.error.status, duplicate.error.code],
    gone: [gone.error.status, gone.error.code],
  }),
);
