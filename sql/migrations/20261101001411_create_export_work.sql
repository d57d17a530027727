-- Who does what of an export: workers claim it, say how far they are, and let go of it.

-- Whether an export's work is the worker's to write of: he has claimed some of it and nobody else has since.
create function private.has_export(export_id bigint, worker uuid)
returns boolean
language sql
stable
set search_path = ''
as $$
  select exists (
    select from private.export_workers as workers
    where workers.export_id = has_export.export_id and workers.worker = has_export.worker
    union all
    select from private.export_shards as shards
    where shards.export_id = has_export.export_id and shards.worker = has_export.worker and not shards.is_done
  )
$$;

revoke all on function private.has_export(bigint, uuid) from public, anon, authenticated;
grant execute on function private.has_export(bigint, uuid) to service_role;

-- A lease ends so many seconds from now; no function runs longer than 15 minutes.
create function private.lease_end(lease_seconds integer)
returns timestamptz
language sql
volatile
set search_path = ''
as $$
  select clock_timestamp() + make_interval(secs => least(greatest(lease_seconds, 0), 900))
$$;

revoke all on function private.lease_end(integer) from public, anon, authenticated;
grant execute on function private.lease_end(integer) to service_role;

-- What a worker is to do of an export next, his alone for the time of the lease; he may claim again to go on. One of
-- these, with the export as describe_export tells it:
--   {"outcome": "collect", "shard", "cursor"}       bring in this shard, from there on
--   {"outcome": "select"}                           all shards are in: call select_export
--   {"outcome": "write", "parts", "progress"}       write the files, of parts 0 to parts - 1, from `progress` on
--   {"outcome": "busy", "retry_after_seconds"}      others have all that is to do
--   {"outcome": "ready" | "failed"}                 there is nothing to do
--   {"outcome": "unknown"}
-- A shard may be in hand beside others; the selection and the writing have one worker. The row's lock makes claims
-- queue: the second sees the first one's. Who selects has it for long, and is not waited for.
create function public.claim_export(id bigint, worker uuid, lease_seconds integer)
returns jsonb
language plpgsql
set search_path = ''
set lock_timeout = '2s'
as $$
declare
  export public.training_exports;
  shard private.export_shards;
  free_at timestamptz;
begin
  begin
    select * into export from public.training_exports as rows where rows.id = claim_export.id for update;
  exception when lock_not_available then
    select * into export from public.training_exports as rows where rows.id = claim_export.id;
    return private.describe_export(export) || jsonb_build_object('outcome', 'busy', 'retry_after_seconds', 5);
  end;
  if export.id is null then
    return jsonb_build_object('outcome', 'unknown');
  end if;

  if export.status in ('ready', 'replaced', 'failed') then
    return private.describe_export(export)
      || jsonb_build_object('outcome', case export.status when 'failed' then 'failed' else 'ready' end);
  end if;

  select * into shard from private.export_shards as shards
  where shards.export_id = export.id and not shards.is_done
    and (shards.worker is null or shards.worker = claim_export.worker or shards.expires_at <= clock_timestamp())
  order by shards.worker is not distinct from claim_export.worker desc, shards.number
  limit 1;
  if found then
    update private.export_shards as shards
    set worker = claim_export.worker, expires_at = private.lease_end(lease_seconds)
    where shards.export_id = export.id and shards.number = shard.number;
    return private.describe_export(export)
      || jsonb_build_object('outcome', 'collect', 'shard', shard.number, 'cursor', shard.after);
  end if;

  select min(held.expires_at) into free_at
  from (
    select shards.expires_at from private.export_shards as shards
    where shards.export_id = export.id and not shards.is_done
    union all
    select workers.expires_at from private.export_workers as workers
    where workers.export_id = export.id and workers.worker <> claim_export.worker
      and workers.expires_at > clock_timestamp()
  ) as held;
  if free_at is not null then
    return private.describe_export(export) || jsonb_build_object(
      'outcome', 'busy', 'retry_after_seconds', greatest(1, ceil(extract(epoch from free_at - clock_timestamp())))
    );
  end if;

  insert into private.export_workers as known (export_id, worker, expires_at)
  values (export.id, claim_export.worker, private.lease_end(lease_seconds))
  on conflict on constraint export_workers_pkey do update
  set worker = excluded.worker, expires_at = excluded.expires_at;

  return private.describe_export(export) || case export.status
    when 'collecting' then jsonb_build_object('outcome', 'select')
    else private.describe_writing(export)
  end;
end
$$;

revoke all on function public.claim_export(bigint, uuid, integer) from public, anon, authenticated;
grant execute on function public.claim_export(bigint, uuid, integer) to service_role;

-- What is left to write of an export.
create function private.describe_writing(export public.training_exports)
returns jsonb
language sql
stable
set search_path = ''
as $$
  select jsonb_build_object(
    'outcome', 'write',
    'parts', (select count(*) from public.training_export_parts as parts where parts.export_id = export.id),
    'progress', export.progress
  )
$$;

revoke all on function private.describe_writing(public.training_exports) from public, anon, authenticated;
grant execute on function private.describe_writing(public.training_exports) to service_role;

-- Keeps how far the files are written, and `lease_seconds` from now the worker has the export to himself: {"outcome":
-- "noted"}, or {"outcome": "lost"} where another has it or it is over.
create function public.note_export(id bigint, worker uuid, progress jsonb, lease_seconds integer)
returns jsonb
language plpgsql
set search_path = ''
as $$
begin
  perform from public.training_exports as rows
  where rows.id = note_export.id and rows.status = 'writing' for update;
  if not found or not private.has_export(note_export.id, note_export.worker) then
    return jsonb_build_object('outcome', 'lost');
  end if;

  update public.training_exports as rows
  set progress = nullif(note_export.progress, 'null')
  where rows.id = note_export.id;
  update private.export_workers as workers
  set expires_at = private.lease_end(lease_seconds)
  where workers.export_id = note_export.id;
  return jsonb_build_object('outcome', 'noted');
end
$$;

revoke all on function public.note_export(bigint, uuid, jsonb, integer) from public, anon, authenticated;
grant execute on function public.note_export(bigint, uuid, jsonb, integer) to service_role;

-- The files are there; what the export replaces is replaced from now on. {"outcome": "noted" | "lost"}
create function public.finish_export(id bigint, worker uuid, files jsonb, manifest jsonb, rows bigint)
returns jsonb
language plpgsql
set search_path = ''
as $$
declare
  export public.training_exports;
begin
  select * into export from public.training_exports as known
  where known.id = finish_export.id and known.status = 'writing' for update;
  if not found or not private.has_export(finish_export.id, finish_export.worker) then
    return jsonb_build_object('outcome', 'lost');
  end if;

  update public.training_exports as known
  set
    status = 'ready',
    files = finish_export.files,
    manifest = finish_export.manifest,
    rows = finish_export.rows,
    progress = null,
    finished_at = clock_timestamp()
  where known.id = export.id;
  update public.training_exports as known set status = 'replaced' where known.id = export.replaces;
  delete from private.export_workers as workers where workers.export_id = export.id;
  return jsonb_build_object('outcome', 'noted');
end
$$;

revoke all on function public.finish_export(bigint, uuid, jsonb, jsonb, bigint) from public, anon, authenticated;
grant execute on function public.finish_export(bigint, uuid, jsonb, jsonb, bigint) to service_role;

-- There will be no files. {"outcome": "noted" | "lost"}
create function public.fail_export(id bigint, worker uuid, failure text)
returns jsonb
language plpgsql
set search_path = ''
as $$
begin
  perform from public.training_exports as known
  where known.id = fail_export.id and known.status in ('collecting', 'writing') for update;
  if not found or not private.has_export(fail_export.id, fail_export.worker) then
    return jsonb_build_object('outcome', 'lost');
  end if;

  update public.training_exports as known
  set status = 'failed', failure = fail_export.failure, finished_at = clock_timestamp()
  where known.id = fail_export.id;
  delete from private.export_workers as workers where workers.export_id = fail_export.id;
  return jsonb_build_object('outcome', 'noted');
end
$$;

revoke all on function public.fail_export(bigint, uuid, text) from public, anon, authenticated;
grant execute on function public.fail_export(bigint, uuid, text) to service_role;

-- Lets go of all that the worker has of an export, for the next one. {"outcome": "noted" | "lost"}
create function public.release_export(id bigint, worker uuid)
returns jsonb
language plpgsql
set search_path = ''
as $$
begin
  perform from public.training_exports as known where known.id = release_export.id for update;
  if not private.has_export(release_export.id, release_export.worker) then
    return jsonb_build_object('outcome', 'lost');
  end if;

  delete from private.export_workers as workers
  where workers.export_id = release_export.id and workers.worker = release_export.worker;
  update private.export_shards as shards
  set worker = null, expires_at = null
  where shards.export_id = release_export.id and shards.worker = release_export.worker;
  return jsonb_build_object('outcome', 'noted');
end
$$;

revoke all on function public.release_export(bigint, uuid) from public, anon, authenticated;
grant execute on function public.release_export(bigint, uuid) to service_role;
