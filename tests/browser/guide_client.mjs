// The guide's own client, as it stands there but for the user's JWT, which is where it has the anon key.
import { createClient } from "@supabase/supabase-js";

const [SUPABASE_URL, SUPABASE_ANON_KEY, email, password, userId, userMessage] = process.argv.slice(2);
const supabase = createClient(SUPABASE_URL, SUPABASE_ANON_KEY, { realtime: { transport: WebSocket } });
const { data } = await supabase.auth.signInWithPassword({ email, password });
const userToken = data.session.access_token;
let setAiResponse;
const aiResponse = new Promise((resolve) => (setAiResponse = resolve));

// Subscribe to AI responses
const channel = supabase
  .channel("ai-responses")
  .on(
    "postgres_changes",
    {
      event: "INSERT",
      schema: "public",
      table: "conversations",
      filter: `user_id=eq.${userId}`,
    },
    (payload) => {
      // Real-time AI response received!
      setAiResponse(payload.new.response);
    },
  )
  .subscribe();

await new Promise((resolve) => channel.on("system", {}, resolve)); // a person takes longer to type than this

// Trigger AI request (via Edge Function)
await fetch(`${SUPABASE_URL}/functions/v1/ai-finance`, {
  method: "POST",
  headers: {
    Authorization: `Bearer ${userToken}`,
    "Content-Type": "application/json",
  },
  body: JSON.stringify({ message: userMessage, userId }),
});
// Response will appear via real-time subscription!

console.log(await aiResponse);
process.exit();
