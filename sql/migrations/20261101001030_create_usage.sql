-- What was spent: for each user his own, for the project's owner all of it by model and day.

-- The caller's plan and what he has spent of it: {"plan", "day", "month", "models"}, a period's spending with what
-- is reserved for calls that run now, or whose holders died since his last call; `models` counts this month's.
create function public.describe_usage()
returns jsonb
language sql
stable
set search_path = ''
as $$
  select jsonb_build_object('plan', plan.name)
    || (
      select jsonb_object_agg(
        periods.period,
        jsonb_build_object(
          'starts_on', current_one.starts_on,
          'requests', coalesce(sums.requests, 0),
          'tokens', coalesce(sums.tokens, 0),
          'tokens_limit', tokens_limit,
          'cost_usd', coalesce(sums.cost_usd, 0),
          'usd_limit', usd_limit
        )
      )
      from (
        values
          ('day', plan.tokens_per_day, plan.usd_per_day),
          ('month', plan.tokens_per_month, plan.usd_per_month)
      ) as periods (period, tokens_limit, usd_limit)
      cross join lateral (select date_trunc(periods.period, now() at time zone 'UTC')::date) as current_one (starts_on)
      left join public.spending as sums
        on sums.user_id = caller.user_id and sums.period = periods.period
        and sums.starts_on = current_one.starts_on
    )
    || jsonb_build_object('models', coalesce((
      select jsonb_agg(to_jsonb(by_model) order by by_model.cost_usd desc, by_model.model)
      from (
        select
          model_version as model,
          count(*) as requests,
          sum(input_tokens) as input_tokens,
          sum(output_tokens) as output_tokens,
          sum(cost_usd) as cost_usd
        from public.model_calls
        where model_calls.user_id = caller.user_id and model_version is not null
          and created_at >= date_trunc('month', now() at time zone 'UTC') at time zone 'UTC'
        group by model_version
      ) as by_model
    ), '[]'))
  from (select private.current_user_id() as user_id) as caller
  cross join lateral private.plan_of(caller.user_id) as plan
$$;

revoke all on function public.describe_usage() from public, anon;
grant execute on function public.describe_usage() to authenticated;

-- The calls that are over, each with the thumb its answer was given and the user who gave it: a thumb counts for the
-- call whose answer stands.
create view private.rated_calls with (security_invoker = true) as
select
  call.id,
  call.user_id,
  call.function,
  call.status,
  call.model_version,
  call.routed_version,
  call.input_tokens,
  call.cached_tokens,
  call.output_tokens,
  call.reasoning_tokens,
  call.is_estimated,
  call.cost_usd,
  call.latency_ms,
  call.created_at,
  conversation.feedback,
  conversation.user_id as rated_by
from public.model_calls as call
left join public.conversations as conversation
  on call.conversation_id = conversation.id and conversation.feedback <> 0
  and call.id = (
    select answering.id from public.model_calls as answering
    where answering.conversation_id = conversation.id and answering.state = 'settled'
      and answering.status = conversation.status
      and answering.model_version is not distinct from conversation.model_version
    order by answering.created_at desc
    limit 1
  )
where call.state = 'settled';

grant select on private.rated_calls to service_role;

-- Every model's figures by day, for admins, the gateway and the database's owner. Security definer, because nobody's
-- conversations are open to an admin, and feedback stands in them; what leaves here is counts.
create function private.summarize_model_calls()
returns table (
  day date,
  model_version text,
  function text,
  calls bigint,
  failed bigint,
  error_rate double precision,
  input_tokens bigint,
  cached_tokens bigint,
  output_tokens bigint,
  reasoning_tokens bigint,
  estimated bigint,
  cost_usd numeric,
  p50_latency_ms double precision,
  p95_latency_ms double precision,
  thumbs_up bigint,
  thumbs_down bigint
)
language sql
stable
security definer
set search_path = ''
as $$
  select
    (call.created_at at time zone 'UTC')::date,
    call.model_version,
    call.function,
    count(*),
    count(*) filter (where call.status = 'failed'),
    (count(*) filter (where call.status = 'failed'))::double precision / count(*),
    sum(call.input_tokens),
    sum(call.cached_tokens),
    sum(call.output_tokens),
    sum(call.reasoning_tokens),
    count(*) filter (where call.is_estimated),
    sum(call.cost_usd),
    percentile_cont(0.5) within group (order by call.latency_ms),
    percentile_cont(0.95) within group (order by call.latency_ms),
    count(*) filter (where call.feedback = 1),
    count(*) filter (where call.feedback = -1)
  from private.rated_calls as call
  where (select private.is_admin()) or current_setting('role', true) in ('service_role', 'none')
  group by 1, 2, 3
$$;

revoke all on function private.summarize_model_calls() from public, anon;
grant execute on function private.summarize_model_calls() to authenticated, service_role;

-- The owner's view: cost, latency, error rate and feedback by model version and day; empty for everybody else. A call
-- that failed has the model that was asked last; one that asked none has none.
create view public.model_usage with (security_invoker = true) as
select
  day,
  model_version,
  function,
  calls,
  failed,
  error_rate,
  input_tokens,
  cached_tokens,
  output_tokens,
  reasoning_tokens,
  estimated,
  cost_usd,
  p50_latency_ms,
  p95_latency_ms,
  thumbs_up,
  thumbs_down
from private.summarize_model_calls();

revoke all on public.model_usage from anon, authenticated;
grant select on public.model_usage to authenticated, service_role;
