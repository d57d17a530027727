-- The corpus: earlier turns of rows written by hand are assessed too, what anybody changes by hand waits for it, and
-- turns that are disliked later leave the rows after them.

alter table public.training_data add constraint training_data_turns_are_pairs
check (
  not jsonb_path_exists(turns, 'strict $[*] ? (@.type() != "array" || @.size() != 2 || @[*].type() != "string")')
);

-- Those that wait for their conversation to be collected anew: few, if any.
create index training_data_changed_by_hand_idx on public.training_data (conversation_id)
where conversation_id is not null and content_hash is null;

-- A row is assessed anew when somebody changes its text; until then no export has it. Whoever has assessed it says in
-- which transaction.
drop trigger forget_assessment on public.training_data;

create trigger forget_assessment before update of instruction, input, output, turns on public.training_data
for each row when (
  new.changed_in = old.changed_in
  and (new.instruction, new.input, new.output, new.turns)
  is distinct from (old.instruction, old.input, old.output, old.turns)
)
execute function private.forget_assessment();

drop trigger settle_without_row on public.training_data;

create trigger settle_without_row
after update of instruction, input, output, turns, content_hash on public.training_data
for each row when (old.content_hash is not null and new.content_hash is null)
execute function private.settle_without_row();

-- A database that was restored from a dump counts its transactions anew: what was noted of the old count says nothing,
-- and what is said to be changed in times to come is changed now. Another export may have been selected since `now_at`,
-- which is no such time. What was changed by hand since its conversation was collected is collected with the next
-- export. Rows are written only where there are any, for whoever writes them has to queue.
create or replace function private.mend_watermarks(now_at xid8)
returns void
language plpgsql
set search_path = ''
as $$
declare
  to_come constant xid8 := greatest(now_at, pg_snapshot_xmax(pg_current_snapshot()));
begin
  update private.corpus set collected_until = '0' where collected_until > to_come;
  update public.training_exports set selected_until = null where selected_until > to_come;
  update public.conversations set changed_in = pg_current_xact_id()
  where feedback is not null and changed_in > pg_current_xact_id();
  if exists (select from public.training_data where changed_in > pg_current_xact_id()) then
    update public.training_data set changed_in = pg_current_xact_id() where changed_in > pg_current_xact_id();
  end if;
  update public.conversations as asked set changed_in = pg_current_xact_id()
  from public.training_data as rows
  where rows.conversation_id = asked.id and rows.content_hash is null and asked.changed_in <= rows.changed_in;
end
$$;

-- A page of the rows without a conversation, which are shard 0, as read_export_conversations tells one.
create function public.read_export_written(id bigint, after jsonb, page_rows integer)
returns json
language sql
stable
set search_path = ''
set statement_timeout = '60s'
as $$
  select json_build_object(
    'rows', coalesce(json_agg(
      json_build_array(
        written.id, null, concat_ws(e'\n\n', written.instruction, nullif(written.input, '')), written.output, null,
        'complete', null, 0, 0, written.turns
      ) order by written.id
    ), '[]'),
    'next', case
      when count(*) >= page_rows or max(written.bytes_so_far) > 4000000 then json_build_array('0', max(written.id))
    end
  )
  from (
    select *, sum(found.bytes) over (order by found.id rows unbounded preceding) as bytes_so_far
    from (
      select
        rows.id, rows.instruction, rows.input, rows.output, rows.turns,
        octet_length(rows.instruction) + coalesce(octet_length(rows.input), 0) + octet_length(rows.output)
          + coalesce(octet_length(rows.turns::text), 0) as bytes
      from public.training_data as rows
      inner join public.training_exports as export
        on export.id = read_export_written.id and rows.changed_in < export.collected_until
      where rows.conversation_id is null and rows.content_hash is null
        and rows.id > coalesce((read_export_written.after ->> 1)::bigint, 0)
      order by rows.id
      limit page_rows
    ) as found
  ) as written
  where written.bytes_so_far - written.bytes <= 4000000
$$;

revoke all on function public.read_export_written(bigint, jsonb, integer) from public, anon, authenticated;
grant execute on function public.read_export_written(bigint, jsonb, integer) to service_role;

-- As it was, and `turns` too are what is left of them.
create or replace function private.put_written(rows jsonb, changed_before xid8, out hashes bytea[], out gone bigint[])
language sql
set search_path = ''
as $$
  with changed as (
    update public.training_data as known
    set
      instruction = coalesce(given.question, known.instruction),
      input = case when given.question is null then known.input end,
      output = coalesce(given.answer, known.output),
      turns = given.turns,
      tags = array(
        select tags.tag from unnest(known.tags || given.tags) with ordinality as tags (tag, place)
        group by tags.tag order by min(tags.place)
      ),
      votes = 1,
      quality_score = coalesce(
        nullif(known.quality_score, round((known.merit + 0.4) * 10000) / 10000),
        round((given.merit + 0.4) * 10000) / 10000
      ),
      merit = given.merit,
      split = given.split,
      question_hash = given.question_hash,
      content_hash = given.content_hash,
      near_keys = given.near_keys,
      signature = given.signature,
      dropped = given.dropped,
      duplicate_of = null,
      redactions = given.redactions,
      changed_in = pg_current_xact_id()
    from private.assessed_rows(put_written.rows) as given
    where known.id = given.id and known.conversation_id is null and known.content_hash is null
      and known.changed_in < put_written.changed_before
    returning known.id, known.content_hash
  )

  select array_agg(content_hash), array_agg(id) from changed
$$;

-- The rows after a turn have it among theirs unless it is disliked: when that changes they are collected anew. They are
-- locked by their ids, as forget_conversations does.
create function private.recollect_later()
returns trigger
language plpgsql
security definer
set search_path = ''
as $$
declare
  later_ids bigint[];
begin
  select array_agg(locked.id) into later_ids
  from (
    select later.id from public.conversations as later
    where later.user_id = new.user_id and later.thread_id = new.thread_id and later.id > new.id
      and later.feedback is not null
    order by later.id
    for no key update of later
  ) as locked;
  if later_ids is not null then
    update public.conversations set changed_in = pg_current_xact_id() where id = any(later_ids);
  end if;
  return null;
end
$$;

revoke all on function private.recollect_later() from public, anon, authenticated;

create trigger recollect_later after update of feedback on public.conversations
for each row when ((coalesce(old.feedback, 0) < 0) <> (coalesce(new.feedback, 0) < 0))
execute function private.recollect_later();
