// Which project the page talks to: the embedded stack serves its own in place of this file, and `make playground` writes
// one for a hosted project. `functionsUrl` is where the functions have an address of their own, `https://…/functions/v1`.
export default {
  supabaseUrl: 'https://PROJECT.supabase.co',
  publishableKey: 'sb_publishable_…',
  functionsUrl: undefined,
}
