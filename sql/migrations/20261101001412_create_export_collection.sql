-- Collecting: conversations are read a page at a time, and come back as rows of the corpus.

-- A page of a shard, after the cursor or from its beginning: {"rows": [[id, user_id, message, response, feedback,
-- status, error_code, passages, flags, turns], …], "next"}. `passages` and `flags` are how many; `turns` are up to
-- three complete ones of the same thread before it that aren't disliked, the oldest first, as [[message, response], …],
-- or null. `next` is the cursor of the next page, null after the last; a page ends with the row that makes it larger
-- than 4 MB. What changes meanwhile is left to the next export, so that nothing comes twice. Of shard 0 the rows are
-- those of training_data that no conversation has.
create function public.read_export_conversations(id bigint, shard integer, after jsonb, page_rows integer)
returns json
language plpgsql
stable
set search_path = ''
set statement_timeout = '60s'
set enable_seqscan = off  -- the page is one stretch of the index
set enable_hashjoin = off
set enable_mergejoin = off
set enable_bitmapscan = off
as $$
declare
  most_bytes constant integer := 4000000;
  export public.training_exports;
  span private.export_shards;
  after_xid xid8;
  after_id bigint;
  page json;
begin
  select * into export from public.training_exports as rows where rows.id = read_export_conversations.id;
  select * into span from private.export_shards as shards
  where shards.export_id = export.id and shards.number = read_export_conversations.shard;
  after_xid := coalesce((after ->> 0)::xid8, export.collected_from);
  after_id := coalesce((after ->> 1)::bigint, span.first_id - 1);

  if span.number = 0 then
    select json_build_object(
      'rows', coalesce(json_agg(
        json_build_array(
          written.id, null, concat_ws(e'\n\n', written.instruction, nullif(written.input, '')), written.output, null,
          'complete', null, 0, 0, null
        ) order by written.id
      ), '[]'),
      'next', case
        when count(*) >= page_rows or max(written.bytes_so_far) > most_bytes
          then json_build_array(after_xid::text, max(written.id))
      end
    )
    into page
    from (
      select *, sum(found.bytes) over (order by found.id rows unbounded preceding) as bytes_so_far
      from (
        select
          rows.id, rows.instruction, rows.input, rows.output,
          octet_length(rows.instruction) + coalesce(octet_length(rows.input), 0) + octet_length(rows.output) as bytes
        from public.training_data as rows
        where rows.conversation_id is null and rows.content_hash is null
          and rows.changed_in < export.collected_until and rows.id > after_id
        order by rows.id
        limit page_rows
      ) as found
    ) as written
    where written.bytes_so_far - written.bytes <= most_bytes;
    return page;
  end if;

  select json_build_object(
    'rows', coalesce(json_agg(
      json_build_array(
        rated.id, rated.user_id, rated.message, rated.response, rated.feedback, rated.status, rated.error_code,
        jsonb_array_length(rated.context_used), jsonb_array_length(rated.flags),
        case cardinality(earlier.turns)
          when 1 then earlier.turns
          when 2 then array[earlier.turns[2], earlier.turns[1]]
          when 3 then array[earlier.turns[3], earlier.turns[2], earlier.turns[1]]
        end
      ) order by rated.changed_in, rated.id
    ), '[]'),
    'next', case
      when count(*) >= page_rows or max(rated.bytes_so_far) > most_bytes then json_build_array(
        (array_agg(rated.changed_in::text order by rated.changed_in, rated.id))[count(*)::integer],
        (array_agg(rated.id order by rated.changed_in, rated.id))[count(*)::integer]
      )
    end
  )
  into page
  from (
    select *, sum(found.bytes) over (order by found.changed_in, found.id rows unbounded preceding) as bytes_so_far
    from (
      select
        conversations.id, conversations.user_id, conversations.thread_id, conversations.message,
        conversations.response, conversations.feedback, conversations.status, conversations.error_code,
        conversations.context_used, conversations.flags, conversations.changed_in,
        octet_length(conversations.message) + octet_length(conversations.response) as bytes
      from public.conversations
      inner join public.users on users.user_id = conversations.user_id and users.training_consent
      where conversations.feedback is not null
        and (conversations.changed_in, conversations.id) > (after_xid, after_id)
        and conversations.changed_in < export.collected_until
        and conversations.id between span.first_id and span.last_id
      order by conversations.changed_in, conversations.id
      limit page_rows
    ) as found
  ) as rated
  cross join lateral (  -- the newest first, for most have none, and a sort of each would take the longest
    select array(
      select json_build_array(others.message, others.response) from public.conversations as others
      where others.user_id = rated.user_id and others.thread_id = rated.thread_id and others.id < rated.id
        and others.status = 'complete' and others.feedback is distinct from -1
      order by others.id desc
      limit 3
    ) as turns
    offset 0
  ) as earlier
  where rated.bytes_so_far - rated.bytes <= most_bytes;
  return page;
end
$$;

revoke all on function public.read_export_conversations(bigint, integer, jsonb, integer)
from public, anon, authenticated;
grant execute on function public.read_export_conversations(bigint, integer, jsonb, integer) to service_role;

-- Rows of a page as put_export_page is given them.
create function private.assessed_rows(rows jsonb)
returns table (
  id bigint, question text, answer text, turns jsonb, merit double precision, tags text[], split text,
  question_hash bytea, content_hash bytea, near_keys bigint[], signature bytea, dropped text, redactions jsonb
)
language sql
immutable
set search_path = ''
as $$
  select
    (given ->> 0)::bigint,
    given ->> 1,
    given ->> 2,
    nullif(given -> 3, 'null'),
    (given ->> 4)::double precision,
    array(select jsonb_array_elements_text(nullif(given -> 5, 'null'))),
    given ->> 6,
    decode(given ->> 7, 'hex'),
    decode(given ->> 8, 'hex'),
    case when jsonb_typeof(given -> 9) = 'array' then array[
      (given -> 9 -> 0)::bigint, (given -> 9 -> 1)::bigint, (given -> 9 -> 2)::bigint, (given -> 9 -> 3)::bigint
    ] end,
    decode(given ->> 10, 'hex'),
    given ->> 11,
    nullif(given -> 12, 'null')
  from jsonb_array_elements(assessed_rows.rows) as page (given)
$$;

revoke all on function private.assessed_rows(jsonb) from public, anon, authenticated;
grant execute on function private.assessed_rows(jsonb) to service_role;

-- Puts a page of conversations into the corpus; gives the content_hashes that may not be alone, and the rows that are
-- not what they were. Conversations that were changed since they were read, or may not be learned from any more, are
-- passed over. For those who have queued.
create function private.put_conversations(
  rows jsonb, changed_before xid8, out hashes bytea[], out gone bigint[]
)
language plpgsql
set search_path = ''
set enable_seqscan = off  -- a plan made when the table was small would stay
set enable_hashjoin = off
set enable_mergejoin = off
set work_mem = '32MB'
as $$
begin
  with given as materialized (
    select assessed.*, known.id as known_id, known.content_hash as known_hash
    from private.assessed_rows(put_conversations.rows) as assessed
    left join public.training_data as known on known.conversation_id = assessed.id
  ),

  page as not materialized (  -- so that the texts go straight from one table to the other
    select
      given.id as conversation_id, given.known_id, given.turns, given.merit, given.tags, given.split,
      given.question_hash, given.content_hash, given.near_keys, given.signature, given.redactions,
      coalesce(given.question, conversations.message) as question,
      coalesce(given.answer, conversations.response) as answer,
      conversations.user_id, conversations.model_version, conversations.created_at as asked_at,
      conversations.feedback,
      given.dropped as unfit,
      coalesce(given.dropped, case when conversations.feedback < 0 then 'disliked' end) as dropped,
      round((given.merit + 0.2 * (conversations.feedback + 1)) * 10000) / 10000 as quality_score
    from given
    inner join public.conversations
      on conversations.id = given.id and conversations.feedback is not null
      and conversations.changed_in < put_conversations.changed_before
    inner join public.users on users.user_id = conversations.user_id and users.training_consent
  ),

  added as (
    insert into public.training_data (
      instruction, output, source, quality_score, tags, conversation_id, user_id, model_version, asked_at, turns, votes,
      merit, split, question_hash, content_hash, near_keys, signature, dropped, redactions
    )
    select
      question, answer, 'conversation', quality_score, tags, conversation_id, user_id, model_version, asked_at, turns,
      feedback, merit, split, question_hash, content_hash, near_keys, signature, dropped, redactions
    from page
    where known_id is null
  ),

  changed as (
    update public.training_data as known
    set
      instruction = page.question,
      input = null,
      output = page.answer,
      tags = page.tags,
      user_id = page.user_id,
      model_version = page.model_version,
      asked_at = page.asked_at,
      turns = page.turns,
      votes = page.feedback,
      quality_score = page.quality_score,
      merit = page.merit,
      split = page.split,
      question_hash = page.question_hash,
      content_hash = page.content_hash,
      near_keys = page.near_keys,
      signature = page.signature,
      dropped = page.unfit,
      duplicate_of = null,
      redactions = page.redactions,
      changed_in = pg_current_xact_id()
    from page
    where page.known_id is not null and known.id = page.known_id
      and (
        known.instruction, known.output, known.turns, known.merit, known.tags, known.split, known.question_hash,
        known.content_hash, known.near_keys, known.signature, known.redactions, known.model_version, known.user_id,
        case
          when known.dropped in ('conflict', 'disliked', 'duplicate', 'near_duplicate') then null
          else known.dropped
        end,
        case when page.unfit is not null then known.votes end
      ) is distinct from (
        page.question, page.answer, page.turns, page.merit, page.tags, page.split, page.question_hash,
        page.content_hash, page.near_keys, page.signature, page.redactions, page.model_version, page.user_id,
        page.unfit, case when page.unfit is not null then page.feedback end
      )
    returning known.id
  )

  select array_agg(touched.content_hash), (select array_agg(changed.id) from changed)
  into hashes, gone
  from (
    select known_hash as content_hash from given where known_id is not null
    union all
    select content_hash from given where known_id is not null
    union all
    select given.content_hash from given
    where given.known_id is null
      and exists (select from public.training_data as twin where twin.content_hash = given.content_hash)
    union all
    select content_hash from given where known_id is null group by content_hash having count(*) > 1
  ) as touched;
end
$$;

revoke all on function private.put_conversations(jsonb, xid8) from public, anon, authenticated;
grant execute on function private.put_conversations(jsonb, xid8) to service_role;

-- The same for rows without a conversation. What is hidden of one is hidden in its row, where `input` is then a part of
-- the instruction. Whoever wrote it has the first word on its tags, and on its score, which is filled where it is null
-- or what it was filled with before.
create function private.put_written(rows jsonb, changed_before xid8, out hashes bytea[], out gone bigint[])
language sql
set search_path = ''
as $$
  with changed as (
    update public.training_data as known
    set
      instruction = coalesce(given.question, known.instruction),
      input = case when given.question is null then known.input end,
      output = coalesce(given.answer, known.output),
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

revoke all on function private.put_written(jsonb, xid8) from public, anon, authenticated;
grant execute on function private.put_written(jsonb, xid8) to service_role;

-- Puts an assessed page into the corpus and notes where the shard's next one begins, in one transaction: {"outcome":
-- "noted"}, or {"outcome": "lost"} where another worker has the shard or the export is over. A row is [id, question,
-- answer, turns, merit, tags, split, question_hash, content_hash, near_keys, signature, dropped, redactions], its
-- hashes and signature in hexadecimal; a question or answer that is null is as it is in its conversation. `cursor` is
-- the page's `next`, `seen` how many rows it had. The same page again is noted already.
create function public.put_export_page(
  id bigint, shard integer, worker uuid, cursor jsonb, done boolean, rows jsonb, seen integer, lease_seconds integer
)
returns jsonb
language plpgsql
set search_path = ''
set statement_timeout = '60s'
as $$
declare
  span private.export_shards;
  until xid8;
  touched record;
begin
  select exports.collected_until into until from public.training_exports as exports
  where exports.id = put_export_page.id and exports.status = 'collecting'
  for share;  -- so that it isn't ended before this is written
  select * into span from private.export_shards as shards
  where shards.export_id = put_export_page.id and shards.number = put_export_page.shard
    and shards.worker = put_export_page.worker
  for update;
  if not found or until is null then
    return jsonb_build_object('outcome', 'lost');
  end if;
  if span.is_done or span.after = put_export_page.cursor then
    return jsonb_build_object('outcome', 'noted');
  end if;

  perform private.queue_for_corpus();
  if span.number = 0 then
    touched := private.put_written(put_export_page.rows, until);
  else
    touched := private.put_conversations(put_export_page.rows, until);
  end if;
  if touched.hashes is not null then
    perform private.settle_groups(touched.hashes, touched.gone);
  end if;

  update private.export_shards as shards
  set
    after = nullif(put_export_page.cursor, 'null'),
    is_done = done,
    seen = shards.seen + put_export_page.seen,
    expires_at = private.lease_end(lease_seconds)
  where shards.export_id = span.export_id and shards.number = span.number;
  return jsonb_build_object('outcome', 'noted');
end
$$;

revoke all on function public.put_export_page(bigint, integer, uuid, jsonb, boolean, jsonb, integer, integer)
from public, anon, authenticated;
grant execute on function public.put_export_page(bigint, integer, uuid, jsonb, boolean, jsonb, integer, integer)
to service_role;
