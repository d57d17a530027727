-- Answers that a provider was left alone with: it calls back when its job is over. In private, for nobody but the
-- gateway has business here.

create table private.jobs (
  token uuid primary key default gen_random_uuid(),
  attempt uuid not null,
  provider text not null,
  model text not null,
  job_id text,
  work jsonb not null,
  expires_at timestamptz not null,
  unique (attempt, model)
);

comment on column private.jobs.token is 'Stands in the address that the provider calls, and nobody else knows it.';
comment on column private.jobs.job_id is 'What the provider calls it; null until it was given away.';
comment on column private.jobs.work is 'The deferred turn as it stands in the queue''s messages.';

create index jobs_expires_at_idx on private.jobs (expires_at);

alter table private.jobs enable row level security;

grant select, insert, update, delete on private.jobs to service_role;

-- Makes room for a job that is about to be given away, or finds the one there is of this attempt and model, as
-- {"token", "job_id"}. Sweeps up to a hundred that have been over for a day.
create function public.open_job(attempt uuid, provider text, model text, work jsonb, keep_seconds integer)
returns jsonb
language sql
set search_path = ''
as $$
  delete from private.jobs
  where ctid = any (array(
    select over.ctid from private.jobs as over
    where over.expires_at < now() - interval '1 day'
    limit 100
    for update skip locked
  ));

  insert into private.jobs as known (attempt, provider, model, work, expires_at)
  values (
    open_job.attempt, open_job.provider, open_job.model, open_job.work, now() + make_interval(secs => keep_seconds)
  )
  on conflict on constraint jobs_attempt_model_key do update
  set attempt = known.attempt
  returning jsonb_build_object('token', token, 'job_id', job_id)
$$;

revoke all on function public.open_job(uuid, text, text, jsonb, integer) from public, anon, authenticated;
grant execute on function public.open_job(uuid, text, text, jsonb, integer) to service_role;

-- Notes what the provider calls it.
create function public.name_job(token uuid, job_id text)
returns void
language sql
set search_path = ''
as $$
  update private.jobs set job_id = name_job.job_id where jobs.token = name_job.token
$$;

revoke all on function public.name_job(uuid, text) from public, anon, authenticated;
grant execute on function public.name_job(uuid, text) to service_role;

-- The job of a token, as {"provider", "model", "job_id", "work", "seconds_left"}; null where there is none.
create function public.find_job(token uuid)
returns jsonb
language sql
stable
set search_path = ''
as $$
  select jsonb_build_object(
    'provider', provider, 'model', model, 'job_id', job_id, 'work', work,
    'seconds_left', extract(epoch from expires_at - now())
  )
  from private.jobs
  where jobs.token = find_job.token
$$;

revoke all on function public.find_job(uuid) from public, anon, authenticated;
grant execute on function public.find_job(uuid) to service_role;
