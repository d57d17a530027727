-- Answers that a provider was left alone with: it calls back when its job is over. In private, for nobody but the
-- gateway has business here.

create table private.jobs (
  token uuid primary key default gen_random_uuid(),
  provider text not null,
  job_id text,
  work jsonb not null,
  expires_at timestamptz not null
);

comment on column private.jobs.token is 'Stands in the address that the provider calls, and nobody else knows it.';
comment on column private.jobs.work is 'The deferred turn as it stands in the queue''s messages.';

create index jobs_expires_at_idx on private.jobs (expires_at);

alter table private.jobs enable row level security;

grant select, insert, update, delete on private.jobs to service_role;

-- Makes room for a job that is about to be given away, and returns its token; sweeps up to a hundred that are over.
create function public.open_job(provider text, work jsonb, keep_seconds integer)
returns uuid
language sql
set search_path = ''
as $$
  delete from private.jobs
  where ctid = any (array(
    select over.ctid from private.jobs as over
    where over.expires_at < now()
    limit 100
    for update skip locked
  ));

  insert into private.jobs (provider, work, expires_at)
  values (open_job.provider, open_job.work, now() + make_interval(secs => keep_seconds))
  returning token
$$;

revoke all on function public.open_job(text, jsonb, integer) from public, anon, authenticated;
grant execute on function public.open_job(text, jsonb, integer) to service_role;

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

-- The job of a token, as {"provider", "job_id", "work"}; null where there is none.
create function public.find_job(token uuid)
returns jsonb
language sql
stable
set search_path = ''
as $$
  select jsonb_build_object('provider', provider, 'job_id', job_id, 'work', work) from private.jobs
  where jobs.token = find_job.token and expires_at > now()
$$;

revoke all on function public.find_job(uuid) from public, anon, authenticated;
grant execute on function public.find_job(uuid) to service_role;

create function public.close_job(token uuid)
returns void
language sql
set search_path = ''
as $$
  delete from private.jobs where jobs.token = close_job.token
$$;

revoke all on function public.close_job(uuid) from public, anon, authenticated;
grant execute on function public.close_job(uuid) to service_role;
