-- Why a search finds what it finds: the place of a passage in each of the three lists, for admins.

-- Loads pgvector into the session: before that, nobody but a superuser may set hnsw.… for a function.
select '[1]'::extensions.vector;

-- As it was, and where it is `explained` with `ranks`: for each list that a passage is in, by its name, its `rank`,
-- `value`, what the list goes by (the similarity, the words' score), and `share`, what it adds to the passage's score.
drop function private.rank_passages(extensions.vector, text, double precision, text, text, text, text, integer);

create function private.rank_passages(
  query_embedding extensions.vector(1536),
  question text,
  threshold double precision,
  model text,
  symbol text,
  address text,
  category text,
  row_count integer,
  explained boolean default false
)
returns table (id bigint, similarity double precision, score double precision, ranks jsonb)
language plpgsql
stable
rows 20
set search_path = ''
set hnsw.iterative_scan = 'relaxed_order'
set hnsw.ef_search = 500
set hnsw.max_scan_tuples = 50000
set hnsw.scan_mem_multiplier = 8
set cpu_operator_cost = 0.25
set plan_cache_mode = 'force_custom_plan'
as $$
#variable_conflict use_column
declare
  rank_constant constant double precision := 10;
  candidate_count constant integer := greatest(100, 2 * row_count);
  caller_id constant bigint := private.current_user_id();
  beginning constant extensions.halfvec(1024) := extensions.subvector(query_embedding, 1, 1024);
begin
  return query
  with nearest as materialized (
    select
      near.id,
      near.embedding operator(extensions.<=>) query_embedding as distance
    from (
      select
        candidate.id,
        candidate.embedding
      from public.finance_knowledge as candidate
      where candidate.embedding_model = rank_passages.model
        and (candidate.owner_id is null or candidate.owner_id = caller_id)
        and (rank_passages.symbol is null or candidate.symbol_key = rank_passages.symbol)
        and (rank_passages.address is null or candidate.address_key = rank_passages.address)
        and (rank_passages.category is null or candidate.category = rank_passages.category)
      order by
        (extensions.subvector(candidate.embedding, 1, 1024)::extensions.halfvec(1024))
        operator(extensions.<=>) beginning
      limit candidate_count
    ) as near
  ),

  worded as materialized (
    select matched.*
    from private.match_words(
      question, rank_passages.model, rank_passages.symbol, rank_passages.address, rank_passages.category,
      candidate_count
    ) as matched
    where question is not null
  ),

  listed as (
    select
      nearest.id,
      nearest.distance,
      1 - nearest.distance as value,
      'meaning' as list,
      1.0 as worth,
      row_number() over (order by nearest.distance, nearest.id) as place
    from nearest
    union all
    select
      worded.id, null, worded.score, 'words', worded.worth,
      row_number() over (order by worded.score desc, worded.id)
    from worded
    union all
    select
      worded.id, null, worded.score, 'names', worded.name_worth,
      row_number() over (order by worded.score desc, worded.id)
    from worded
    where worded.is_exact
  ),

  best as (
    select sum(lists.worth) as score from (select max(worth) as worth from listed group by list) as lists
  ),

  fused as (
    select
      listed.id,
      max(listed.distance) as distance,
      least(
        1,  -- sums of fractions come out a little above it in some orders
        sum(listed.worth * (rank_constant + 1) / (rank_constant + listed.place))
        / (select best.score from best)
      ) as score,
      jsonb_object_agg(
        listed.list,
        jsonb_build_object(
          'rank', listed.place,
          'value', listed.value,
          'share', listed.worth * (rank_constant + 1) / (rank_constant + listed.place)
            / (select best.score from best)
        )
      ) filter (where explained) as ranks
    from listed
    group by listed.id
  )

  select ranked.id, ranked.similarity, ranked.score, ranked.ranks
  from (
    select
      fused.id,
      fused.score,
      fused.ranks,
      coalesce(worded.is_exact or worded.coverage >= 0.8, false) as is_worded,
      -- Vectors are kept apart from their rows, and slow to read: each once where it can be.
      1 - coalesce(fused.distance, knowledge.embedding operator(extensions.<=>) query_embedding) as similarity
    from fused
    inner join public.finance_knowledge as knowledge on knowledge.id = fused.id
    left join worded on worded.id = fused.id
    offset 0  -- or a filter on the similarity would compute every row's first
  ) as ranked
  where ranked.similarity <> 'NaN'  -- a vector of zeros has no direction
    and (ranked.similarity > threshold or ranked.is_worded)
  order by ranked.score desc, ranked.similarity desc
  limit row_count;
end
$$;

revoke all on function private.rank_passages(
  extensions.vector, text, double precision, text, text, text, text, integer, boolean
) from public;
grant execute on function private.rank_passages(
  extensions.vector, text, double precision, text, text, text, text, integer, boolean
) to anon, authenticated, service_role;

-- What search_finance_knowledge finds with these arguments, and the `ranks` it found it by; for admins and the gateway.
create function public.explain_search(
  query_embedding extensions.vector(1536),
  query_text text,
  match_threshold double precision,
  match_count integer,
  model text,
  filter_token_symbol text default null,
  filter_token_address text default null,
  filter_category text default null
)
returns table (
  id bigint,
  content text,
  similarity double precision,
  score double precision,
  title text,
  token_symbol text,
  token_address text,
  source text,
  metadata jsonb,
  content_hash text,
  is_private boolean,
  ranks jsonb
)
language plpgsql
stable
set search_path = ''
as $$
#variable_conflict use_column
begin
  if not private.is_admin() and current_setting('role', true) not in ('service_role', 'none') then
    raise insufficient_privilege using message = 'only admins are told why a search finds something';
  end if;

  return query
  select
    knowledge.id, knowledge.content, ranked.similarity, ranked.score, knowledge.title, knowledge.token_symbol,
    knowledge.token_address, knowledge.source, knowledge.metadata, knowledge.content_hash,
    knowledge.owner_id is not null, ranked.ranks
  from private.rank_passages(
    query_embedding,
    query_text,
    match_threshold,
    explain_search.model,
    upper(ltrim(filter_token_symbol, '$')),
    private.account(filter_token_address),
    filter_category,
    greatest(0, least(match_count, 100)),
    explained => true
  ) as ranked
  inner join public.finance_knowledge as knowledge on knowledge.id = ranked.id
  order by ranked.score desc, ranked.similarity desc;
end
$$;

revoke all on function public.explain_search(
  extensions.vector, text, double precision, integer, text, text, text, text
) from public, anon;
grant execute on function public.explain_search(
  extensions.vector, text, double precision, integer, text, text, text, text
) to authenticated, service_role;
