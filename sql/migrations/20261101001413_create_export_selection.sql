-- Selecting: near duplicates are found, what is good enough is fixed as an export's parts, and the parts are read.

-- Rows that are near duplicates, by the row that is kept in their stead. Of the rows that share one of their keys, in
-- its place, the best is compared with each: where 4 of 5 numbers of their signatures agree, the other is a near
-- duplicate. Of two a liked one is the better, then the one with the higher score, then the newer conversation: whoever
-- brought them in first.
create function private.find_near_duplicates()
returns table (id bigint, better_id bigint)
language sql
stable
set search_path = ''
set work_mem = '128MB'
as $$
  with candidates as not materialized (
    select rows.id, rows.votes, rows.quality_score, rows.conversation_id, rows.near_keys
    from public.training_data as rows
    where (rows.dropped is null or rows.dropped = 'near_duplicate') and rows.content_hash is not null
  ),

  -- Most keys are had once, and sorting the keys alone is the fastest way to find the others.
  sorted_keys as (
    select keys.key, lag(keys.key) over (order by keys.key) as key_before
    from candidates cross join lateral unnest(candidates.near_keys) as keys (key)
  ),

  shared_keys as materialized (select distinct key from sorted_keys where key = key_before),

  compared as (
    select distinct
      candidates.id,
      first_value(candidates.id) over (
        partition by keys.place, keys.key
        order by
          (candidates.votes is null or candidates.votes > 0) desc, candidates.quality_score desc,
          candidates.conversation_id desc nulls last, candidates.id desc
      ) as better_id
    from candidates
    cross join lateral unnest(candidates.near_keys) with ordinality as keys (key, place)
    inner join shared_keys on shared_keys.key = keys.key
  )

  select distinct on (compared.id) compared.id, compared.better_id
  from compared
  inner join public.training_data as rows on rows.id = compared.id
  inner join public.training_data as better on better.id = compared.better_id
  where compared.id <> compared.better_id
    and (
      select count(*) from generate_series(1, 127, 2) as places (place)
      where substr(rows.signature, place, 2) = substr(better.signature, place, 2)
    ) >= 0.8 * 64
  order by
    compared.id, (better.votes is null or better.votes > 0) desc, better.quality_score desc,
    better.conversation_id desc nulls last, better.id desc
$$;

revoke all on function private.find_near_duplicates() from public, anon, authenticated;
grant execute on function private.find_near_duplicates() to service_role;

-- Marks near duplicates, and those that are none any more. What they are is found out before queueing, for it takes
-- long; who is not kept any more by then is nobody's better.
create function private.mark_near_duplicates()
returns void
language plpgsql
set search_path = ''
set work_mem = '128MB'
as $$
declare
  near_ids bigint[];
  better_ids bigint[];
begin
  select array_agg(near.id order by near.id), array_agg(near.better_id order by near.id)
  into near_ids, better_ids
  from private.find_near_duplicates() as near;

  perform private.queue_for_corpus();

  with near as (
    select given.id, given.better_id
    from unnest(near_ids, better_ids) as given (id, better_id)
    inner join public.training_data as better on better.id = given.better_id
    where better.dropped is null or better.dropped = 'near_duplicate'
  )

  update public.training_data as rows
  set
    dropped = case when told.better_id is not null then 'near_duplicate' end,
    duplicate_of = told.better_id,
    changed_in = case
      when rows.dropped is null or told.better_id is null then pg_current_xact_id() else rows.changed_in
    end
  from (
    select near.id, near.better_id from near
    union all
    select marked.id, null from public.training_data as marked
    where marked.dropped = 'near_duplicate' and not exists (select from near where near.id = marked.id)
  ) as told
  where rows.id = told.id and (rows.dropped is null or rows.dropped = 'near_duplicate')
    and rows.duplicate_of is distinct from told.better_id;
end
$$;

revoke all on function private.mark_near_duplicates() from public, anon, authenticated;
grant execute on function private.mark_near_duplicates() to service_role;

-- Fixes which rows an export has, when all of its shards are in: as claim_export tells what is to write, or as "ready"
-- where it was to be tried only, or {"outcome": "lost"} where another worker has it. For pairs each row gets the
-- disliked answer to the same question, of a user in the same half; the most disliked one, then the newest.
create function public.select_export(
  id bigint, worker uuid, part_rows integer default 5000, lease_seconds integer default 60
)
returns jsonb
language plpgsql
set search_path = ''
set statement_timeout = '300s'
set work_mem = '128MB'
as $$
declare
  export public.training_exports;
begin
  select * into export from public.training_exports as known where known.id = select_export.id for update;
  if not found or not private.has_export(select_export.id, select_export.worker) then
    return jsonb_build_object('outcome', 'lost');
  end if;
  if export.status = 'writing' then
    return private.describe_export(export) || private.describe_writing(export);
  end if;
  if export.status <> 'collecting'
    or exists (
      select from private.export_shards as shards where shards.export_id = export.id and not shards.is_done
    ) then
    return jsonb_build_object('outcome', 'lost');
  end if;

  perform private.mark_near_duplicates();

  export.selected_until := pg_snapshot_xmin(pg_current_snapshot());
  select parts.selected, parts.skipped into export.rows, export.skipped
  from private.fix_parts(export, part_rows) as parts;

  update private.corpus
  set collected_until = export.collected_until, rules = export.rules
  where (corpus.rules = export.rules and corpus.collected_until between export.collected_from and export.collected_until)
    or (corpus.rules <> export.rules and export.collected_from = '0');

  update public.training_exports as known
  set
    status = case when (export.options ->> 'dry_run')::boolean then 'ready' else 'writing' end,
    selected_until = export.selected_until,
    rows = export.rows,
    skipped = export.skipped,
    consent = jsonb_build_object(
      'users', (select count(*) from public.users where users.training_consent), 'at', clock_timestamp()
    ),
    finished_at = case when (export.options ->> 'dry_run')::boolean then clock_timestamp() end
  where known.id = export.id
  returning * into export;

  update private.export_workers as workers
  set expires_at = private.lease_end(lease_seconds)
  where workers.export_id = export.id;

  return private.describe_export(export) || case export.status
    when 'ready' then jsonb_build_object('outcome', 'ready')
    else private.describe_writing(export)
  end;
end
$$;

revoke all on function public.select_export(bigint, uuid, integer, integer) from public, anon, authenticated;
grant execute on function public.select_export(bigint, uuid, integer, integer) to service_role;

-- Writes an export's parts; gives how many rows it has, and how many there are beside them, by the reason. Of one to be
-- tried they are counted only. An increment has a row again whose disliked counterpart has come since.
create function private.fix_parts(
  export public.training_exports, part_rows integer, out selected bigint, out skipped jsonb
)
language plpgsql
set search_path = ''
set work_mem = '128MB'
as $$
declare
  since constant timestamptz := export.options ->> 'since';
  until constant timestamptz := export.options ->> 'until';
  min_feedback constant integer := export.options ->> 'min_feedback';
  min_quality constant double precision := export.options ->> 'min_quality';
  of_model constant text := export.options ->> 'model_version';
  is_trial constant boolean := coalesce((export.options ->> 'dry_run')::boolean, false);
  has_pairs constant boolean := exists (
    select from jsonb_array_elements_text(export.options -> 'formats') as formats (name) where name like '%dpo%'
  );
begin
  with rejected as materialized (
    select distinct on (rows.question_hash, rows.split)
      rows.question_hash, rows.split, rows.id, rows.user_id, rows.changed_in
    from public.training_data as rows
    where has_pairs and rows.dropped = 'disliked'
    order by
      rows.question_hash, rows.split, rows.votes, rows.asked_at desc nulls last,
      rows.conversation_id desc nulls last, rows.id desc
  ),

  in_reach as materialized (
    select
      rows.id, rows.conversation_id, rows.user_id, rejected.id as rejected_id, rejected.user_id as rejected_user_id,
      case
        when rows.dropped is not null then rows.dropped
        when rows.conversation_id is not null and rows.votes < min_feedback then 'low_feedback'
        when rows.quality_score < min_quality then 'low_quality'
      end as reason
    from public.training_data as rows
    left join rejected
      on rows.dropped is null and rejected.question_hash = rows.question_hash and rejected.split = rows.split
    where rows.content_hash is not null
      and (since is null or coalesce(rows.asked_at, rows.created_at) >= since)
      and (until is null or coalesce(rows.asked_at, rows.created_at) < until)
      and (of_model is null or rows.model_version = of_model)
      and (
        export.from_xid is null
        or rows.changed_in >= export.from_xid
        or (rejected.changed_in >= export.from_xid and rejected.changed_in < export.selected_until)
      )
      and (not (export.options ->> 'incremental')::boolean or rows.changed_in < export.selected_until)
  ),

  members as (
    select *, (place - 1) / greatest(1, part_rows) as number
    from (
      select *, row_number() over (order by conversation_id, id) as place from in_reach where reason is null
    ) as placed
  ),

  made as (
    insert into public.training_export_parts (
      export_id, number, ids, conversation_ids, user_ids, rejected_ids, rejected_user_ids
    )
    select
      export.id,
      members.number,
      array_agg(members.id order by members.place),
      array_agg(members.conversation_id order by members.place),
      array_agg(members.user_id order by members.place),
      case when has_pairs then array_agg(members.rejected_id order by members.place) end,
      case when has_pairs then array_agg(members.rejected_user_id order by members.place) end
    from members
    where not is_trial
    group by members.number
  )

  select coalesce(sum(reasons.number) filter (where reasons.reason is null), 0),
    coalesce(jsonb_object_agg(reasons.reason, reasons.number) filter (where reasons.reason is not null), '{}')
  into selected, skipped
  from (select reason, count(*) as number from in_reach group by reason) as reasons;

  select skipped || case when count(*) > 0 then jsonb_build_object('no_consent', count(*)) else '{}' end into skipped
  from public.conversations
  inner join public.users on users.user_id = conversations.user_id and not users.training_consent
  where conversations.feedback is not null
    and (since is null or conversations.created_at >= since)
    and (until is null or conversations.created_at < until)
    and (of_model is null or conversations.model_version = of_model)
    and (export.from_xid is null or conversations.changed_in >= export.from_xid);
end
$$;

revoke all on function private.fix_parts(public.training_exports, integer) from public, anon, authenticated;
grant execute on function private.fix_parts(public.training_exports, integer) to service_role;

-- A part's rows that still exist, in the order of their conversations: {"rows": [[id, conversation_id, instruction,
-- input, output, turns, rejected_output, quality_score, tags, user_id, source, rejected_user_id], …]}. What somebody
-- has changed by hand and nobody has assessed since is not among them, for nothing is hidden in it.
create function public.read_export_part(id bigint, number integer)
returns json
language sql
stable
set search_path = ''
set statement_timeout = '60s'
as $$
  select json_build_object('rows', coalesce(json_agg(
    json_build_array(
      rows.id, rows.conversation_id, rows.instruction, rows.input, rows.output, rows.turns, rejected.output,
      rows.quality_score, rows.tags, rows.user_id, rows.source, members.rejected_user_id
    ) order by members.place
  ), '[]'))
  from public.training_export_parts as parts
  cross join lateral unnest(parts.ids, parts.rejected_ids, parts.rejected_user_ids)
  with ordinality as members (id, rejected_id, rejected_user_id, place)
  inner join public.training_data as rows on rows.id = members.id and rows.content_hash is not null
  left join public.training_data as rejected
    on rejected.id = members.rejected_id and rejected.content_hash is not null
  where parts.export_id = read_export_part.id and parts.number = read_export_part.number
$$;

revoke all on function public.read_export_part(bigint, integer) from public, anon, authenticated;
grant execute on function public.read_export_part(bigint, integer) to service_role;
