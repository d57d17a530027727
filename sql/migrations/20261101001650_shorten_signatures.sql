-- Signatures have a byte of each of their 64 numbers, which tells texts apart as well as two bytes do: Li and König,
-- "b-Bit minwise hashing", 2010. Those of two bytes are made anew with the next export, as its rules have another name.

comment on column public.training_data.signature is
  'A byte of each of 64 numbers: the more of them two rows share, the more of their words.';

-- Rows that are near duplicates, by the row that is kept in their stead. Of the rows that share one of their keys, in
-- its place, the best is compared with each: where 4 of 5 numbers of their signatures agree, the other is a near
-- duplicate. Of two a liked one is the better, then the one with the higher score, then the newer conversation: whoever
-- brought them in first.
create or replace function private.find_near_duplicates()
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
      select count(*) from generate_series(1, 64) as places (place)
      where substr(rows.signature, place, 1) = substr(better.signature, place, 1)
    ) >= 0.8 * 64
  order by
    compared.id, (better.votes is null or better.votes > 0) desc, better.quality_score desc,
    better.conversation_id desc nulls last, better.id desc
$$;

-- Puts a page of conversations into the corpus, as before; but a row that has other keys and another signature only is
-- not changed for that, and no increment has it again.
create or replace function private.put_conversations(
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
      changed_in = case
        when (
          known.instruction, known.output, known.turns, known.merit, known.tags, known.split, known.question_hash,
          known.content_hash, known.redactions, known.model_version, known.user_id, known.dropped
        ) is distinct from (
          page.question, page.answer, page.turns, page.merit, page.tags, page.split, page.question_hash,
          page.content_hash, page.redactions, page.model_version, page.user_id, page.unfit
        ) then pg_current_xact_id()
        else known.changed_in
      end
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
