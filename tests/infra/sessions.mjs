// One user's way through supabase-js: sign up, sign in, refresh, ask who it is, sign out.
import { createClient } from "@supabase/supabase-js";

const [url, key, email] = process.argv.slice(2);
const client = createClient(url, key, {
  auth: { autoRefreshToken: false },
  realtime: { transport: class {} }, // Node 20 has no WebSocket, and none is opened here
});
const must = ({ data, error }) => {
  if (error) throw error;
  return data;
};
const claims = (session) => JSON.parse(Buffer.from(session.access_token.split(".")[1], "base64url"));

const credentials = { email, password: "correct horse" };
const signedUp = must(await client.auth.signUp({ ...credentials, options: { data: { full_name: "Ada" } } }));
const signedIn = must(await client.auth.signInWithPassword(credentials));
const refreshed = must(await client.auth.refreshSession());
const { user } = must(await client.auth.getUser());
const { error: signOutError } = await client.auth.signOut();
const { error: refusal } = await client.auth.refreshSession(refreshed.session);

console.log(
  JSON.stringify({
    claims: [signedUp, signedIn, refreshed].map(({ session }) => claims(session)),
    email: user.email,
    signOutError,
    refusal: refusal?.code,
  }),
);
