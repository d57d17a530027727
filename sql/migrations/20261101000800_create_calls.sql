-- When each caller asked ai-with-rag: what its rate limits count. Visitors have no users row to hang it on, so a
-- caller is a key, and in private, for nobody but count_call has business here.

create table private.calls (
  caller_key text not null,
  called_at timestamptz not null default now()
);

comment on column private.calls.caller_key is
  'user:<auth id> or address:<keyed hash of the client address>, and :search where searches are counted apart.';

create index calls_caller_key_called_at_idx on private.calls (caller_key, called_at);
create index calls_called_at_idx on private.calls (called_at);

alter table private.calls enable row level security;

grant select, insert, delete, update on private.calls to service_role;

-- Counts a call and returns null, or returns the seconds to wait and counts nothing: the caller has had
-- `calls_per_minute` in the last minute. Calls of one caller queue on a lock, so that concurrent ones can't slip
-- past the count. Each call sweeps up to a hundred that are over, anybody's, so that visitors who never come
-- again leave nothing behind. For the gateway alone: who could call it would use up the quota of others.
create function public.count_call(caller_key text, calls_per_minute integer)
returns integer
language plpgsql
set search_path = ''
as $$
declare
  blocking timestamptz;
begin
  perform pg_advisory_xact_lock(hashtextextended('calls:' || count_call.caller_key, 0));

  delete from private.calls
  where ctid = any(array(
    select calls.ctid from private.calls
    where calls.called_at < now() - interval '1 minute'
    limit 100
    for update skip locked
  ));

  select calls.called_at into blocking
  from private.calls
  where calls.caller_key = count_call.caller_key and calls.called_at > now() - interval '1 minute'
  order by calls.called_at desc
  offset greatest(calls_per_minute, 1) - 1
  limit 1;

  if found then
    return greatest(1, ceil(extract(epoch from blocking + interval '1 minute' - now())));
  end if;

  insert into private.calls (caller_key) values (count_call.caller_key);
  return null;
end
$$;

revoke all on function public.count_call(text, integer) from public, anon, authenticated;
grant execute on function public.count_call(text, integer) to service_role;
