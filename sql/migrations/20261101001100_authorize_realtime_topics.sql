-- Who hears and says what over Realtime: a user's answers are broadcast on the private topic user:<user_id>, which
-- he alone may hear, and where nobody speaks but the gateway: the secret key stands above the policies.

-- Realtime makes the table, so it has no migration here; where it is absent there is nothing to allow.
do $$
begin
  if to_regclass('realtime.messages') is null then
    return;
  end if;

  create policy "users can hear their own topic"
  on realtime.messages for select to authenticated
  using (extension = 'broadcast' and topic = 'user:' || (select private.current_user_id()));

  -- And nobody else can, whatever the app's own policies allow on its topics, user:<uuid> among them.
  create policy "users hear no other user's topic"
  on realtime.messages as restrictive for select to authenticated
  using (topic !~ '^user:-?[0-9]+$' or topic = 'user:' || (select private.current_user_id()));

  create policy "visitors hear no user's topic"
  on realtime.messages as restrictive for select to anon
  using (topic !~ '^user:-?[0-9]+$');

  create policy "nobody speaks on a user's topic"
  on realtime.messages as restrictive for insert to anon, authenticated
  with check (topic !~ '^user:-?[0-9]+$');
end
$$;
