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
