-- One row a model's answer, whichever function asked: reserved before, settled after. What quotas, costs and the
-- owner's figures are made of; it holds no text.

create table public.model_calls (
  id uuid primary key,
  user_id bigint references public.users (user_id) on delete set null,
  function text not null,
  conversation_id bigint,
  state text not null check (state in ('reserved', 'settled')),
  reserved_tokens bigint not null default 0,
  reserved_usd numeric not null default 0,
  expires_at timestamptz,
  status text,
  error_code text,
  model_version text,
  routed_version text,
  input_tokens integer not null default 0,
  cached_tokens integer not null default 0,
  output_tokens integer not null default 0,
  reasoning_tokens integer not null default 0,
  is_estimated boolean not null default false,
  cost_usd numeric not null default 0,
  latency_ms integer,
  created_at timestamptz not null default now()
);

comment on column public.model_calls.user_id is 'null: a visitor, or a user who is gone.';
comment on column public.model_calls.model_version is 'What answered, or was asked last.';
comment on column public.model_calls.routed_version is
  'The version its user was sent to; where that failed, another model answered. null: he named one, or none is served.';
comment on column public.model_calls.cached_tokens is 'Of the input, what the provider had in its cache.';
comment on column public.model_calls.reasoning_tokens is 'Of the output, what the model thought and did not say.';
comment on column public.model_calls.is_estimated is 'Whether tokens were counted here, or have no known price.';
comment on column public.model_calls.expires_at is 'After this whoever reserved is taken for dead.';

create index model_calls_user_id_created_at_idx on public.model_calls (user_id, created_at);
create index model_calls_reserved_idx on public.model_calls (user_id, expires_at) where state = 'reserved';
create index model_calls_created_at_idx on public.model_calls (created_at);
create index model_calls_routed_version_created_at_idx on public.model_calls (routed_version, created_at);
create index model_calls_conversation_id_idx on public.model_calls (conversation_id);

alter table public.model_calls enable row level security;

create policy "users can see their own model calls"
on public.model_calls for select to authenticated
using (user_id = (select private.current_user_id()));

revoke all on public.model_calls from anon, authenticated;
grant select on public.model_calls to authenticated;
grant all on public.model_calls to service_role;

-- What is left of one limit, as {"limit", "remaining", "reset_seconds"}; null where there is none.
create function private.describe_limit(most numeric, spent numeric, ends_at timestamptz)
returns jsonb
language sql
stable
set search_path = ''
as $$
  select jsonb_build_object(
    'limit', most,
    'remaining', greatest(0, most - spent),
    'reset_seconds', greatest(1, ceil(extract(epoch from ends_at - now())))
  )
  where most is not null
$$;

revoke all on function private.describe_limit(numeric, numeric, timestamptz) from public, anon, authenticated;
grant execute on function private.describe_limit(numeric, numeric, timestamptz) to service_role;

-- The budgets of a user's plan, day's and month's, and what he has spent of each.
create function private.list_budgets(caller_id bigint)
returns table (kind text, most numeric, spent numeric, ends_at timestamptz)
language sql
stable
set search_path = ''
as $$
  select of_plan.kind, of_plan.most, coalesce(of_plan.spent, 0), of_plan.ends_at at time zone 'UTC'
  from private.plan_of(caller_id) as plan
  cross join (
    select
      date_trunc('day', now() at time zone 'UTC') as today,
      date_trunc('month', now() at time zone 'UTC') as this_month
  ) as days
  left join public.spending as day
    on day.user_id = caller_id and day.period = 'day' and day.starts_on = days.today::date
  left join public.spending as month
    on month.user_id = caller_id and month.period = 'month' and month.starts_on = days.this_month::date
  cross join lateral (
    values
      ('tokens', plan.tokens_per_day, day.tokens::numeric, days.today + interval '1 day'),
      ('tokens', plan.tokens_per_month, month.tokens::numeric, days.this_month + interval '1 month'),
      ('usd', plan.usd_per_day, day.cost_usd, days.today + interval '1 day'),
      ('usd', plan.usd_per_month, month.cost_usd, days.this_month + interval '1 month')
  ) as of_plan (kind, most, spent, ends_at)
  where of_plan.most is not null
$$;

revoke all on function private.list_budgets(bigint) from public, anon, authenticated;
grant execute on function private.list_budgets(bigint) to service_role;

-- What a user has left of his plan: {"tokens", "usd"}, of day and month the one that less is left of.
create function private.describe_budgets(caller_id bigint)
returns jsonb
language sql
stable
set search_path = ''
as $$
  select coalesce(jsonb_object_agg(kind, private.describe_limit(most, spent, ends_at)), '{}')
  from (
    select distinct on (kind) kind, most, spent, ends_at from private.list_budgets(caller_id)
    order by kind, greatest(0, most - spent), ends_at desc
  ) as tightest
$$;

revoke all on function private.describe_budgets(bigint) from public, anon, authenticated;
grant execute on function private.describe_budgets(bigint) to service_role;

-- Reserves what a call may spend at most, and returns null; or reserves nothing and returns what stands in the way:
-- {"outcome": "exhausted", "kind": "tokens" | "usd", "retry_after_seconds", "limits"}, of several the one that ends
-- last. What is asked for is bounded, for a user can say it himself. Reservations whose holders died are given back
-- first.
create function private.reserve_spending(
  call_id uuid,
  caller_id bigint,
  function text,
  conversation bigint,
  tokens bigint,
  usd numeric,
  lease_seconds integer
)
returns jsonb
language plpgsql
set search_path = ''
as $$
declare
  asked_tokens constant bigint := least(greatest(tokens, 0), 1000000000);
  asked_usd constant numeric := private.as_usd(usd);
  dead record;
  short record;
begin
  perform private.queue_as_user(caller_id);

  for dead in
    with swept as (
      delete from public.model_calls
      where user_id = caller_id and state = 'reserved' and expires_at < now()
      returning *
    )
    select
      min(created_at) as spent_at, count(*)::integer as requests, sum(reserved_tokens)::bigint as tokens,
      sum(reserved_usd) as usd
    from swept
    group by date_trunc('day', created_at at time zone 'UTC')
  loop
    perform private.add_spending(caller_id, dead.spent_at, -dead.requests, -dead.tokens, -dead.usd);
  end loop;

  select budget.kind, private.describe_limit(budget.most, budget.spent, budget.ends_at) as described into short
  from private.list_budgets(caller_id) as budget
  where greatest(0, budget.most - budget.spent) < case budget.kind when 'tokens' then asked_tokens else asked_usd end
  order by budget.ends_at desc, budget.kind
  limit 1;

  if found then
    return jsonb_build_object(
      'outcome', 'exhausted',
      'kind', short.kind,
      'retry_after_seconds', short.described -> 'reset_seconds',
      'limits', private.describe_budgets(caller_id)
    );
  end if;

  perform private.add_spending(caller_id, now(), 1, asked_tokens, asked_usd);
  insert into public.model_calls
    (id, user_id, function, conversation_id, state, reserved_tokens, reserved_usd, expires_at)
  values (
    call_id, caller_id, reserve_spending.function, conversation, 'reserved', asked_tokens, asked_usd,
    now() + make_interval(secs => lease_seconds)
  );
  return null;
end
$$;

revoke all on function private.reserve_spending(uuid, bigint, text, bigint, bigint, numeric, integer)
from public, anon, authenticated;
grant execute on function private.reserve_spending(uuid, bigint, text, bigint, bigint, numeric, integer)
to service_role;

-- Puts the actual in the place of the reserved, once for each call: again with the same id it changes nothing. Who
-- reserved pays, whoever is named; a call whose reservation was given back meanwhile is charged all the same. What a
-- provider says of its tokens is taken as it is, but for what is below zero.
create function private.settle_call(
  call_id uuid,
  caller_id bigint,
  function text,
  conversation bigint,
  status text,
  error_code text,
  model_version text,
  input_tokens integer,
  cached_tokens integer,
  output_tokens integer,
  reasoning_tokens integer,
  is_estimated boolean,
  cost_usd numeric,
  latency_ms integer,
  routed_version text
)
returns void
language plpgsql
set search_path = ''
as $$
declare
  payer constant bigint := coalesce(
    (select user_id from public.model_calls where id = call_id), private.user_id_of(caller_id, null)
  );
  spent_tokens constant bigint := greatest(input_tokens, 0)::bigint + greatest(output_tokens, 0);
  spent_usd constant numeric := private.as_usd(cost_usd);
  held public.model_calls;
  spent_at timestamptz := now();
begin
  perform private.queue_as_user(payer);

  delete from public.model_calls where id = call_id and state = 'reserved' returning * into held;
  spent_at := coalesce(held.created_at, spent_at);

  insert into public.model_calls (
    id, user_id, function, conversation_id, state, status, error_code, model_version, input_tokens, cached_tokens,
    output_tokens, reasoning_tokens, is_estimated, cost_usd, latency_ms, routed_version, created_at
  )
  values (
    call_id, payer, settle_call.function, conversation, 'settled', settle_call.status, settle_call.error_code,
    settle_call.model_version, greatest(settle_call.input_tokens, 0), greatest(settle_call.cached_tokens, 0),
    greatest(settle_call.output_tokens, 0), greatest(settle_call.reasoning_tokens, 0),
    coalesce(settle_call.is_estimated, false), spent_usd, settle_call.latency_ms,
    settle_call.routed_version, spent_at
  )
  on conflict (id) do nothing;

  if found and payer is not null then
    perform private.add_spending(
      payer,
      spent_at,
      case when held.id is null then 1 else 0 end,
      spent_tokens - coalesce(held.reserved_tokens, 0),
      spent_usd - coalesce(held.reserved_usd, 0)
    );
  end if;
end
$$;

revoke all on function private.settle_call(
  uuid, bigint, text, bigint, text, text, text, integer, integer, integer, integer, boolean, numeric, integer, text
) from public, anon, authenticated;
grant execute on function private.settle_call(
  uuid, bigint, text, bigint, text, text, text, integer, integer, integer, integer, boolean, numeric, integer, text
) to service_role;
