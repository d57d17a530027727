// Which project the page talks to. The embedded stack serves its own in place of this file; for a hosted project
// put its URL and its publishable key here, and `functionsUrl` where the functions have an address of their own.
export default {
  supabaseUrl: 'https://PROJECT.supabase.co',
  publishableKey: 'sb_publishable_…',
  functionsUrl: undefined,
}
