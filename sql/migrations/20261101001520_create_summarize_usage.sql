-- What the models cost over time, how long they took, how often they failed, and how their answers were liked.

create index conversations_rated_idx on public.conversations (id) where feedback in (-1, 1);

-- The settled calls of a span: {"total", "models", "buckets"}, of all together, of each `model`, and of each model in
-- each `bucket` from its `start` on, counted from midnight UTC. All of them have `requests`, `errors`, `input_tokens`,
-- `output_tokens`, `cost_usd`, `p50_ms`, `p95_ms`, `likes` and `dislikes`; `total` is null without a call. A call that
-- asked no model has none, and a thumb counts when its answer was given.
-- One pass over the calls: latencies are counted in steps of 2 %, so that percentiles are right to 1 % without sorting.
create function public.summarize_usage(since timestamptz, until timestamptz, bucket interval)
returns jsonb
language sql
stable
set search_path = ''
set work_mem = '64MB'
as $$
  with calls as materialized (
    select
      date_bin(bucket, call.created_at, 'epoch') as start,
      call.model_version as model,
      round(50 * ln(case when call.latency_ms < 1 then 1 else call.latency_ms end)) as step,
      count(*) as requests,
      count(call.latency_ms) as timed,
      count(*) filter (where call.status = 'failed') as errors,
      sum(call.input_tokens) as input_tokens,
      sum(call.output_tokens) as output_tokens,
      sum(call.cost_usd) as cost_usd,
      min(call.conversation_id) as first_conversation
    from public.model_calls as call
    where call.state = 'settled' and call.created_at >= since and call.created_at < until
    group by 1, 2, 3
  ),

  -- As in private.rated_calls, from the few that are rated: of the calls most are not.
  thumbs as (
    select
      date_bin(bucket, answering.created_at, 'epoch') as start,
      answering.model_version as model,
      count(*) filter (where conversation.feedback = 1) as likes,
      count(*) filter (where conversation.feedback = -1) as dislikes
    from public.conversations as conversation
    cross join lateral (
      select call.created_at, call.model_version
      from public.model_calls as call
      where call.conversation_id = conversation.id and call.state = 'settled' and call.status = conversation.status
        and call.model_version is not distinct from conversation.model_version
      order by call.created_at desc
      limit 1
    ) as answering
    where conversation.feedback in (-1, 1)
      and conversation.id >= (select min(calls.first_conversation) from calls)
      and answering.created_at >= since and answering.created_at < until
    group by 1, 2
  ),

  counted as (
    select
      start, model, step, requests, timed, errors, input_tokens, output_tokens, cost_usd, 0 as likes, 0 as dislikes
    from calls
    union all
    select start, model, null, 0, 0, 0, 0, 0, 0, likes, dislikes from thumbs
  ),

  ranked as (
    select
      scope.*,
      counted.step,
      counted.requests,
      counted.errors,
      counted.input_tokens,
      counted.output_tokens,
      counted.cost_usd,
      counted.likes,
      counted.dislikes,
      sum(counted.timed) over (
        partition by scope.kind, scope.start, scope.model order by counted.step
      ) as timed_so_far,
      sum(counted.timed) over (partition by scope.kind, scope.start, scope.model) as timed_in_all
    from counted
    cross join lateral (
      values ('buckets', counted.start, counted.model), ('models', null, counted.model), ('total', null, null)
    ) as scope (kind, start, model)
  ),

  figures as (
    select
      kind,
      start,
      model,
      sum(requests) as requests,
      sum(errors) as errors,
      sum(input_tokens) as input_tokens,
      sum(output_tokens) as output_tokens,
      sum(cost_usd) as cost_usd,
      exp(min(step) filter (where timed_so_far >= 0.5 * timed_in_all) / 50) as p50_ms,
      exp(min(step) filter (where timed_so_far >= 0.95 * timed_in_all) / 50) as p95_ms,
      sum(likes) as likes,
      sum(dislikes) as dislikes
    from ranked
    group by kind, start, model
  )

  select jsonb_build_object(
    'total', (select to_jsonb(figures) - '{kind,start,model}'::text [] from figures where kind = 'total'),
    'models', coalesce((
      select jsonb_agg(to_jsonb(figures) - '{kind,start}'::text [] order by cost_usd desc, requests desc, model)
      from figures where kind = 'models'
    ), '[]'),
    'buckets', coalesce((
      select jsonb_agg(to_jsonb(figures) - 'kind' order by start, model) from figures where kind = 'buckets'
    ), '[]')
  )
$$;

revoke all on function public.summarize_usage(timestamptz, timestamptz, interval) from public, anon, authenticated;
grant execute on function public.summarize_usage(timestamptz, timestamptz, interval) to service_role;
