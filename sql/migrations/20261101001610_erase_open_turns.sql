-- Erasure reaches what a user has asked and nobody has answered yet, and what is being trained on his rows.

-- Up to which conversation each erased user's are gone: an answer that was under way is not kept when it comes. In
-- private, for nobody but the gateway has business here.
create table private.erasures (
  user_id bigint primary key references public.users (user_id) on delete cascade,
  last_conversation_id bigint not null,
  erased_at timestamptz not null default clock_timestamp()
);

alter table private.erasures enable row level security;

grant select, insert, update on private.erasures to service_role;

create function private.leave_out_erased()
returns trigger
language plpgsql
set search_path = ''
as $$
begin
  if exists (
    select from private.erasures
    where erasures.user_id = new.user_id and new.id <= erasures.last_conversation_id
  ) then
    return null;
  end if;
  return new;
end
$$;

revoke all on function private.leave_out_erased() from public, anon, authenticated;

create trigger leave_out_erased before insert on public.conversations
for each row execute function private.leave_out_erased();

-- The last id that any conversation has been given, kept or not. Security definer, for the counter of the ids.
create function private.last_conversation_id()
returns bigint
language sql
security definer
set search_path = ''
as $$
  select coalesce(pg_sequence_last_value(pg_get_serial_sequence('public.conversations', 'id')::regclass), 0)
$$;

revoke all on function private.last_conversation_id() from public, anon, authenticated;
grant execute on function private.last_conversation_id() to service_role;

-- Ends a user's turns that are under way, before his conversations are erased: nobody answers them any more, and what
-- was answered meanwhile is not kept.
create function public.erase_open_turns(user_id bigint)
returns void
language sql
set search_path = ''
as $$
  select private.queue_as_user(erase_open_turns.user_id);

  insert into private.erasures as known (user_id, last_conversation_id)
  select users.user_id, private.last_conversation_id()
  from public.users where users.user_id = erase_open_turns.user_id
  on conflict on constraint erasures_pkey do update
  set last_conversation_id = excluded.last_conversation_id, erased_at = excluded.erased_at;

  delete from private.jobs
  where jobs.work #>> '{draft,turn,user_id}' = erase_open_turns.user_id::text
    or jobs.attempt in (
      select turns.attempt from public.open_turns as turns where turns.user_id = erase_open_turns.user_id
    );

  delete from public.open_turns as turns where turns.user_id = erase_open_turns.user_id
$$;

revoke all on function public.erase_open_turns(bigint) from public, anon, authenticated;
grant execute on function public.erase_open_turns(bigint) to service_role;

-- Cancels those of the jobs of which nothing is registered yet, and lets go of them: what they learn is not to be
-- served. Gives all as fine_tunes_of_exports tells them, with their status as it was before.
create or replace function private.cancel_fine_tunes(export_ids bigint[])
returns jsonb
language plpgsql
set search_path = ''
as $$
declare
  jobs jsonb;
begin
  perform from public.fine_tune_jobs as rows where rows.export_id = any(export_ids) order by rows.id for update;
  jobs := private.fine_tunes_of_exports(export_ids);

  with cancelled as (
    update public.fine_tune_jobs as rows
    set status = 'cancelled', failure = 'The rows were erased.', finished_at = clock_timestamp()
    where rows.export_id = any(export_ids)
      and rows.status in ('uploading', 'training', 'deploying') and rows.deployed_version is null
    returning rows.id
  )
  delete from private.fine_tune_leases as leases using cancelled where leases.job_id = cancelled.id;
  return jobs;
end
$$;
