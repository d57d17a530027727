-- Takes a user's rows out of an export that is being written. Whoever writes it loses it, and the next one begins with
-- the first part, and gives the files other names: one of before may be on its way yet.
create or replace function private.rewrite_export(export_id bigint, user_id bigint)
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

  update public.training_exports as exports
  set progress = jsonb_build_object('rewritten', coalesce((exports.progress ->> 'rewritten')::integer, 0) + 1)
  where exports.id = rewrite_export.export_id;
  delete from private.export_workers as workers where workers.export_id = rewrite_export.export_id
$$;
