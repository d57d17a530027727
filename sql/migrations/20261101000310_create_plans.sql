-- What a user may spend: plans with limits, who is on which, and what was spent in this day and month (UTC).

create table public.plans (
  name text primary key,
  requests_per_minute integer check (requests_per_minute > 0),
  tokens_per_day bigint check (tokens_per_day >= 0),
  tokens_per_month bigint check (tokens_per_month >= 0),
  usd_per_day numeric check (usd_per_day >= 0),
  usd_per_month numeric check (usd_per_month >= 0)
);

comment on table public.plans is
  'Limits of a user; null is none. Who is on no plan is on the one named default. A plan without a limit of requests'
  ' has the setting''s.';

insert into public.plans (name) values ('default');

alter table public.plans enable row level security;

create policy "signed-in users can read the plans"
on public.plans for select to authenticated
using (true);

revoke all on public.plans from anon, authenticated;
grant select on public.plans to authenticated;
grant all on public.plans to service_role;

create table public.user_plans (
  user_id bigint primary key references public.users (user_id) on delete cascade,
  plan text not null references public.plans (name) on update cascade
);

create index user_plans_plan_idx on public.user_plans (plan);

alter table public.user_plans enable row level security;

create policy "users can see which plan they are on"
on public.user_plans for select to authenticated
using (user_id = (select private.current_user_id()));

revoke all on public.user_plans from anon, authenticated;
grant select on public.user_plans to authenticated;
grant all on public.user_plans to service_role;

-- Kept as sums, for a month's calls are too many to add up before each of them.
create table public.spending (
  user_id bigint not null references public.users (user_id) on delete cascade,
  period text not null check (period in ('day', 'month')),
  starts_on date not null,
  requests integer not null default 0,
  tokens bigint not null default 0,
  cost_usd numeric not null default 0,
  primary key (user_id, period, starts_on)
);

comment on table public.spending is 'What was spent, and what is reserved for the calls that run now.';

alter table public.spending enable row level security;

create policy "users can see their own spending"
on public.spending for select to authenticated
using (user_id = (select private.current_user_id()));

revoke all on public.spending from anon, authenticated;
grant select on public.spending to authenticated;
grant all on public.spending to service_role;

-- The plan a user is on.
create function private.plan_of(caller_id bigint)
returns public.plans
language sql
stable
set search_path = ''
as $$
  select plans.* from public.plans
  where plans.name = coalesce((select plan from public.user_plans where user_id = caller_id), 'default')
$$;

revoke all on function private.plan_of(bigint) from public, anon;
grant execute on function private.plan_of(bigint) to authenticated, service_role;

-- Calls of one user queue here before they touch a row of his, so that those that come at once neither slip past a
-- count nor wait crosswise for each other's rows. Nobody queues as null.
create function private.queue_as_user(caller_id bigint)
returns void
language sql
set search_path = ''
as $$
  select pg_advisory_xact_lock(hashtextextended('user', caller_id))
$$;

revoke all on function private.queue_as_user(bigint) from public, anon, authenticated;
grant execute on function private.queue_as_user(bigint) to service_role;

-- Money that sums stay sums with, whatever was said: none below zero, none without end, none that is no number, and
-- no more digits than prices of a token need.
create function private.as_usd(amount numeric)
returns numeric
language sql
immutable
set search_path = ''
as $$
  select trim_scale(round(least(greatest(amount, 0), 1000000), 12))
$$;

revoke all on function private.as_usd(numeric) from public, anon, authenticated;
grant execute on function private.as_usd(numeric) to service_role;

-- Adds to a user's day and month; what is taken back has a minus.
create function private.add_spending(
  caller_id bigint, spent_at timestamptz, requests integer, tokens bigint, usd numeric
)
returns void
language sql
set search_path = ''
as $$
  insert into public.spending as sums (user_id, period, starts_on, requests, tokens, cost_usd)
  select caller_id, period, date_trunc(period, spent_at at time zone 'UTC')::date,
    add_spending.requests, add_spending.tokens, add_spending.usd
  from unnest(array['day', 'month']) as period
  order by period
  on conflict (user_id, period, starts_on) do update
  set
    requests = sums.requests + excluded.requests,
    tokens = sums.tokens + excluded.tokens,
    cost_usd = sums.cost_usd + excluded.cost_usd
$$;

revoke all on function private.add_spending(bigint, timestamptz, integer, bigint, numeric)
from public, anon, authenticated;
grant execute on function private.add_spending(bigint, timestamptz, integer, bigint, numeric) to service_role;
