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

-- Counts a call that asks a model and reserves what it may spend at most: one of
--   {"outcome": "open", "user_id", "limits"}
--   {"outcome": "limited", "retry_after_seconds", "limits"}              too many calls in the last minute
--   {"outcome": "exhausted", "kind", "retry_after_seconds", "limits"}    the plan's tokens or money are used up
-- `user_id` is the caller's where he has a users row; visitors have no plan. For the gateway alone, as count_call is.
create function public.open_call(
  call_id uuid,
  function text,
  caller_key text,
  calls_per_minute integer,
  auth_user_id uuid default null,
  claimed_user_id bigint default null,
  tokens bigint default 0,
  usd numeric default 0,
  lease_seconds integer default 60
)
returns jsonb
language plpgsql
set search_path = ''
as $$
declare
  caller_id constant bigint := private.user_id_of(claimed_user_id, auth_user_id);
  most constant integer := coalesce(
    (select plan.requests_per_minute from private.plan_of(caller_id) as plan where caller_id is not null),
    calls_per_minute
  );
  wait_seconds constant integer := public.count_call(caller_key, most);
  refusal jsonb;
  limits jsonb;
begin
  limits := jsonb_build_object('requests', (
    select private.describe_limit(
      most, count(*), coalesce(now() + make_interval(secs => wait_seconds), min(called_at) + interval '1 minute')
    )
    from private.calls
    where calls.caller_key = open_call.caller_key and calls.called_at > now() - interval '1 minute'
  ));

  if wait_seconds is not null then
    return jsonb_build_object(
      'outcome', 'limited',
      'retry_after_seconds', wait_seconds,
      'limits', case when caller_id is null then limits else private.describe_budgets(caller_id) || limits end
    );
  end if;

  if caller_id is null then
    return jsonb_build_object('outcome', 'open', 'limits', limits);
  end if;

  refusal := private.reserve_spending(call_id, caller_id, open_call.function, null, tokens, usd, lease_seconds);
  limits := private.describe_budgets(caller_id) || limits;
  return coalesce(refusal, jsonb_build_object('outcome', 'open', 'user_id', caller_id))
    || jsonb_build_object('limits', limits);
end
$$;

revoke all on function public.open_call(uuid, text, text, integer, uuid, bigint, bigint, numeric, integer)
from public, anon, authenticated;
grant execute on function public.open_call(uuid, text, text, integer, uuid, bigint, bigint, numeric, integer)
to service_role;

-- Charges a call as private.settle_call does. For the gateway alone.
create function public.close_call(
  call_id uuid,
  function text,
  status text,
  user_id bigint default null,
  error_code text default null,
  model_version text default null,
  input_tokens integer default null,
  cached_tokens integer default null,
  output_tokens integer default null,
  reasoning_tokens integer default null,
  is_estimated boolean default null,
  cost_usd numeric default null,
  latency_ms integer default null,
  routed_version text default null
)
returns void
language sql
set search_path = ''
as $$
  select private.settle_call(
    close_call.call_id, close_call.user_id, close_call.function, null, close_call.status, close_call.error_code,
    close_call.model_version, close_call.input_tokens, close_call.cached_tokens, close_call.output_tokens,
    close_call.reasoning_tokens, close_call.is_estimated, close_call.cost_usd, close_call.latency_ms,
    close_call.routed_version
  )
$$;

revoke all on function public.close_call(
  uuid, text, text, bigint, text, text, integer, integer, integer, integer, boolean, numeric, integer, text
) from public, anon, authenticated;
grant execute on function public.close_call(
  uuid, text, text, bigint, text, text, integer, integer, integer, integer, boolean, numeric, integer, text
) to service_role;
