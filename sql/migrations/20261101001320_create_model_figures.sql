-- What is told of the models: a canary's figures beside the active version's, and the list of versions.

-- What has come of the calls since then whose users were sent to a version: {"version", "answers", "failed", "users",
-- "thumbs_up", "thumbs_down", "votes", "latency_count", "latency_sum_ms", "latencies_ms"}. A call that another model
-- had to answer is a failed one. `votes` has [up, down] of each user who has given its answers a thumb, so that one who
-- gives many can be counted as one; latencies are of its answers, the newest 2000 one by one.
create function private.describe_calls(model public.model_metadata, since timestamptz)
returns jsonb
language sql
stable
set search_path = ''
as $$
  with calls as materialized (
    select
      *,
      status is not distinct from 'failed' or model_version is distinct from routed_version as has_failed
    from private.rated_calls
    where routed_version = model.model_name || '@' || model.version and created_at >= since
  ),

  answers as (select * from calls where not has_failed)

  select jsonb_build_object(
    'version', model.version,
    'answers', (select count(*) from answers),
    'failed', (select count(*) from calls where has_failed),
    'users', (select count(distinct user_id) from calls),
    'thumbs_up', (select count(*) from answers where feedback = 1),
    'thumbs_down', (select count(*) from answers where feedback = -1),
    'votes', (
      select coalesce(jsonb_agg(jsonb_build_array(up, down) order by up, down), '[]')
      from (
        select count(*) filter (where feedback = 1) as up, count(*) filter (where feedback = -1) as down
        from answers
        where rated_by is not null
        group by rated_by
      ) as by_user
    ),
    'latency_count', (select count(latency_ms) from answers),
    'latency_sum_ms', (select coalesce(sum(latency_ms), 0) from answers),
    'latencies_ms', (
      select coalesce(jsonb_agg(latency_ms), '[]')
      from (
        select latency_ms from answers where latency_ms is not null
        order by created_at desc
        limit 2000
      ) as newest
    )
  )
$$;

revoke all on function private.describe_calls(public.model_metadata, timestamptz) from public, anon, authenticated;
grant execute on function private.describe_calls(public.model_metadata, timestamptz) to service_role;

-- The active version and the canary side by side, since the canary is one and no earlier, for before it the active one
-- had other users and other questions: {"outcome": "figures", "since", "weight", "active", "canary"}, both as
-- describe_calls tells them, or {"outcome": "no_canary", "active"}.
create function public.canary_figures(model_name text)
returns jsonb
language plpgsql
stable
set search_path = ''
as $$
declare
  active constant public.model_metadata := private.active_version(canary_figures.model_name);
  canary constant public.model_metadata := private.canary_version(canary_figures.model_name);
begin
  if canary.id is null then
    return jsonb_build_object('outcome', 'no_canary', 'active', active.version);
  end if;

  return jsonb_build_object(
    'outcome', 'figures',
    'since', canary.canary_since,
    'weight', canary.traffic_weight,
    'active', private.describe_calls(active, canary.canary_since),
    'canary', private.describe_calls(canary, canary.canary_since)
  );
end
$$;

revoke all on function public.canary_figures(text) from public, anon, authenticated;
grant execute on function public.canary_figures(text) to service_role;

-- A list of the versions, of one name or of all, the newest first: their columns, and `weight`, their share of their
-- name's users; `share`, of all the users of served versions; `is_served`, whether there is a provider to ask them at;
-- `is_canary`.
create function public.list_models(model_name text default null)
returns jsonb
language sql
stable
set search_path = ''
as $$
  select coalesce(jsonb_agg(
    to_jsonb(listed) || jsonb_build_object('share', coalesce(share, 0))
    order by listed.model_name, listed.id desc
  ), '[]')
  from (
    select
      rows.*,
      weight,
      weight > 0 and is_asked as is_served,
      not is_active and weight > 0 as is_canary,
      case when is_asked then weight / nullif(sum(weight) filter (where is_asked) over (), 0) end as share
    from public.model_metadata as rows
    cross join lateral (
      select
        coalesce(traffic_weight, case when is_active then 1 else 0 end) as weight,
        provider is not null and provider_model is not null as is_asked
    ) as of_row
  ) as listed
  where list_models.model_name is null or listed.model_name = list_models.model_name
$$;

revoke all on function public.list_models(text) from public, anon, authenticated;
grant execute on function public.list_models(text) to service_role;
