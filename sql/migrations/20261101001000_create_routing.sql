-- What the gateway's instances share of the providers: which versions are served, and which providers are resting.

create table private.breakers (
  provider text primary key,
  failures integer not null default 0,
  failed_at timestamptz not null default now(),
  rests integer not null default 0,
  rests_until timestamptz
);

comment on column private.breakers.failures is 'In a row, none of them a minute after the one before.';
comment on column private.breakers.rests is 'How often it has rested without an answer in between.';

alter table private.breakers enable row level security;

grant select, insert, update, delete on private.breakers to service_role;

-- What an instance asks for every few seconds: {"models": the served versions with their weights, "breakers": the
-- providers that have failed, with the seconds they rest yet (0: one try may find out)}. For the gateway alone.
create function public.gateway_state()
returns jsonb
language sql
stable
set search_path = ''
as $$
  select jsonb_build_object(
    'models', coalesce((
      select jsonb_agg(
        jsonb_build_object(
          'name', model_name || '@' || version, 'provider', provider, 'model', provider_model, 'weight', weight
        )
        order by id
      )
      from public.model_metadata
      cross join lateral (select coalesce(traffic_weight, case when is_active then 1 else 0 end)) as of_row (weight)
      where provider is not null and provider_model is not null and weight > 0
    ), '[]'),
    'breakers', coalesce((
      select jsonb_object_agg(
        provider,
        jsonb_build_object(
          'rests_seconds', greatest(0, extract(epoch from rests_until - now())), 'is_resting', rests_until is not null
        )
      )
      from private.breakers
    ), '{}')
  )
$$;

revoke all on function public.gateway_state() from public, anon, authenticated;
grant execute on function public.gateway_state() to service_role;

-- Notes how a provider's try ended. `failures_allowed` in a row make it rest for `rest_seconds`; one more failure after
-- the rest, twice as long, up to sixteen times; an answer ends all that. Returns the seconds it rests, null for none.
-- For the gateway alone.
create function public.note_provider(
  provider text, has_failed boolean, failures_allowed integer, rest_seconds double precision
)
returns double precision
language plpgsql
set search_path = ''
as $$
declare
  breaker private.breakers;
begin
  if not has_failed then
    delete from private.breakers where breakers.provider = note_provider.provider;
    return null;
  end if;

  insert into private.breakers as known (provider, failures) values (note_provider.provider, 1)
  on conflict on constraint breakers_pkey do update
  set
    failures = case when known.failed_at > now() - interval '1 minute' then known.failures + 1 else 1 end,
    failed_at = now()
  returning * into breaker;

  if breaker.rests_until > now() then
    return extract(epoch from breaker.rests_until - now());
  end if;

  if breaker.failures < failures_allowed and breaker.rests = 0 then
    return null;
  end if;

  update private.breakers
  set
    failures = 0,
    rests = breaker.rests + 1,
    rests_until = now() + make_interval(secs => rest_seconds * 2 ^ least(breaker.rests, 4))
  where breakers.provider = note_provider.provider
  returning * into breaker;
  return extract(epoch from breaker.rests_until - now());
end
$$;

revoke all on function public.note_provider(text, boolean, integer, double precision) from public, anon, authenticated;
grant execute on function public.note_provider(text, boolean, integer, double precision) to service_role;
