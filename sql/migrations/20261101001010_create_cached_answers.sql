-- Answers from public knowledge, kept for whoever asks the same of the same passages. In private, for nobody but the
-- gateway has business here.

create table private.cached_answers (
  key text primary key,
  answer jsonb not null,
  expires_at timestamptz not null
);

comment on column private.cached_answers.key is
  'SHA-256 of the models, the prompt, the passages, the question and the filters; no user is in it.';

create index cached_answers_expires_at_idx on private.cached_answers (expires_at);

alter table private.cached_answers enable row level security;

grant select, insert, update, delete on private.cached_answers to service_role;

create function public.read_answer(key text)
returns jsonb
language sql
stable
set search_path = ''
as $$
  select answer from private.cached_answers
  where cached_answers.key = read_answer.key and expires_at > now()
$$;

revoke all on function public.read_answer(text) from public, anon, authenticated;
grant execute on function public.read_answer(text) to service_role;

-- Keeps an answer, and after that, for two that keep must not wait for what the other sweeps, sweeps up to a hundred
-- that are over.
create function public.keep_answer(key text, answer jsonb, keep_seconds integer)
returns void
language sql
set search_path = ''
as $$
  insert into private.cached_answers (key, answer, expires_at)
  values (keep_answer.key, keep_answer.answer, now() + make_interval(secs => keep_seconds))
  on conflict on constraint cached_answers_pkey do update
  set answer = excluded.answer, expires_at = excluded.expires_at;

  delete from private.cached_answers
  where ctid = any (array(
    select over.ctid from private.cached_answers as over
    where over.expires_at < now()
    limit 100
    for update skip locked
  ))
$$;

revoke all on function public.keep_answer(text, jsonb, integer) from public, anon, authenticated;
grant execute on function public.keep_answer(text, jsonb, integer) to service_role;
