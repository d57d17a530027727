-- Erasure: a user's conversations and what models would have learned from them go, from exports too.

-- An export's parts without a user's rows; a pair whose rejected answer was his loses that. A part may become empty.
create function private.parts_without(export_id bigint, user_id bigint)
returns table (
  number integer, ids bigint[], conversation_ids bigint[], user_ids bigint[], rejected_ids bigint[],
  rejected_user_ids bigint[]
)
language sql
stable
set search_path = ''
as $$
  select
    parts.number, kept.ids, kept.conversation_ids, kept.user_ids,
    case when parts.rejected_ids is not null then kept.rejected_ids end,
    case when parts.rejected_ids is not null then kept.rejected_user_ids end
  from public.training_export_parts as parts
  cross join lateral (
    select
      coalesce(array_agg(members.id order by members.place), '{}') as ids,
      coalesce(array_agg(members.conversation_id order by members.place), '{}') as conversation_ids,
      coalesce(array_agg(members.user_id order by members.place), '{}') as user_ids,
      coalesce(
        array_agg(
          case when members.rejected_user_id is distinct from parts_without.user_id then members.rejected_id end
          order by members.place
        ),
        '{}'
      ) as rejected_ids,
      coalesce(
        array_agg(nullif(members.rejected_user_id, parts_without.user_id) order by members.place), '{}'
      ) as rejected_user_ids
    from unnest(
      parts.ids, parts.conversation_ids, parts.user_ids, parts.rejected_ids, parts.rejected_user_ids
    ) with ordinality as members (id, conversation_id, user_id, rejected_id, rejected_user_id, place)
    where members.user_id is distinct from parts_without.user_id
  ) as kept
  where parts.export_id = parts_without.export_id
$$;

revoke all on function private.parts_without(bigint, bigint) from public, anon, authenticated;
grant execute on function private.parts_without(bigint, bigint) to service_role;

-- Takes a user's rows out of an export that is being written. Whoever writes it loses it, and the next one begins with
-- the first part.
create function private.rewrite_export(export_id bigint, user_id bigint)
returns void
language sql
set search_path = ''
as $$
  update public.training_export_parts as parts
  set
    ids = kept.ids,
    conversation_ids = kept.conversation_ids,
    user_ids = kept.user_ids,
    rejected_ids = kept.rejected_ids,
    rejected_user_ids = kept.rejected_user_ids
  from private.parts_without(rewrite_export.export_id, rewrite_export.user_id) as kept
  where parts.export_id = rewrite_export.export_id and parts.number = kept.number;

  update public.training_exports as exports set progress = null where exports.id = rewrite_export.export_id;
  delete from private.export_workers as workers where workers.export_id = rewrite_export.export_id
$$;

revoke all on function private.rewrite_export(bigint, bigint) from public, anon, authenticated;
grant execute on function private.rewrite_export(bigint, bigint) to service_role;

-- A new export like this one, without a user's rows, to be written in its stead.
create function private.replace_export(export public.training_exports, user_id bigint, actor text)
returns void
language sql
set search_path = ''
as $$
  with successor as (
    insert into public.training_exports (
      status, options, rules, collected_from, collected_until, from_xid, selected_until, to_collect, skipped, consent,
      actor, replaces
    )
    values (
      'writing', export.options, export.rules, export.collected_from, export.collected_until, export.from_xid,
      export.selected_until, 0, export.skipped, export.consent, replace_export.actor, export.id
    )
    returning id
  )

  insert into public.training_export_parts (
    export_id, number, ids, conversation_ids, user_ids, rejected_ids, rejected_user_ids
  )
  select successor.id, kept.*
  from successor
  cross join private.parts_without(export.id, replace_export.user_id) as kept
$$;

revoke all on function private.replace_export(public.training_exports, bigint, text) from public, anon, authenticated;
grant execute on function private.replace_export(public.training_exports, bigint, text) to service_role;

-- Takes a user's consent back, deletes his conversations and training rows, and tells where else they are:
-- {"conversations", "training_data", "exports": [{"id", "replaced_by"}], "replaced": [{"id", "replaced_by"}], "models":
-- [{"model_name", "version"}], "jobs": the fine-tune jobs that were given their files}. Each ready export that has any
-- of his rows gets a successor without them, to be claimed and written; one that is being written begins anew without
-- them, and is told as replaced by itself. "replaced" are those that have been replaced or have failed with his rows,
-- and whose files may still be there. The models are those trained on an export that had his rows. Jobs that still send
-- files are cancelled. Called again it tells of the exports that aren't replaced yet. His rows are locked before
-- anybody queues, as deleting and rating do.
create function public.erase_training_user(user_id bigint, actor text default null)
returns jsonb
language plpgsql
set search_path = ''
set statement_timeout = '300s'
set work_mem = '64MB'
as $$
declare
  holders bigint[];
  conversation_count bigint;
  row_count bigint;
  rewritten bigint[];
begin
  perform from public.users where users.user_id = erase_training_user.user_id for no key update;
  perform from public.conversations as asked
  where asked.user_id = erase_training_user.user_id order by asked.id for update;
  perform private.queue_for_corpus();

  delete from public.training_data as rows
  where rows.user_id = erase_training_user.user_id
    or rows.conversation_id in (
      select asked.id from public.conversations as asked where asked.user_id = erase_training_user.user_id
    );
  get diagnostics row_count = row_count;
  update public.users set training_consent = false
  where users.user_id = erase_training_user.user_id and users.training_consent;
  delete from public.conversations as asked where asked.user_id = erase_training_user.user_id;
  get diagnostics conversation_count = row_count;

  perform from public.training_exports as exports where exports.status in ('writing', 'ready', 'replaced') for update;
  select coalesce(array_agg(distinct parts.export_id), '{}') into holders
  from public.training_export_parts as parts
  where erase_training_user.user_id = any(parts.user_ids)
    or erase_training_user.user_id = any(parts.rejected_user_ids);

  select array_agg(exports.id) into rewritten
  from public.training_exports as exports where exports.id = any(holders) and exports.status = 'writing';
  perform private.rewrite_export(exports.id, erase_training_user.user_id)
  from unnest(rewritten) as exports (id);

  perform private.replace_export(exports, erase_training_user.user_id, erase_training_user.actor)
  from public.training_exports as exports
  where exports.id = any(holders) and exports.status = 'ready'
    and not exists (
      select from public.training_exports as successors
      where successors.replaces = exports.id and successors.status <> 'failed'
    );

  return jsonb_build_object(
    'conversations', conversation_count,
    'training_data', row_count,
    'exports', (
      select coalesce(
        jsonb_agg(
          jsonb_build_object('id', exports.id, 'replaced_by', coalesce(successors.id, exports.id)) order by exports.id
        ),
        '[]'
      )
      from public.training_exports as exports
      left join public.training_exports as successors
        on successors.replaces = exports.id and successors.status <> 'failed'
      where (exports.id = any(holders) and exports.status = 'ready')
        or (exports.id = any(rewritten) and exports.replaces is null)  -- what it replaces is told of already
    ),
    'replaced', (
      select coalesce(
        jsonb_agg(jsonb_build_object('id', exports.id, 'replaced_by', successors.id) order by exports.id), '[]'
      )
      from public.training_exports as exports
      left join public.training_exports as successors
        on successors.replaces = exports.id and successors.status <> 'failed'
      where exports.id = any(holders) and exports.status in ('replaced', 'failed')
    ),
    'models', (
      select coalesce(
        jsonb_agg(
          jsonb_build_object('model_name', models.model_name, 'version', models.version)
          order by models.model_name, models.version
        ),
        '[]'
      )
      from public.model_metadata as models where models.dataset_export_id = any(holders)
    ),
    'jobs', private.cancel_fine_tunes(holders)
  );
end
$$;

revoke all on function public.erase_training_user(bigint, text) from public, anon, authenticated;
grant execute on function public.erase_training_user(bigint, text) to service_role;
