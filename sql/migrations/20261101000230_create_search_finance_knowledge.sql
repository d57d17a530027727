-- The search: nearest by meaning and best by words, fused by reciprocal rank, in one call.

-- Loads pgvector into the session: before that, nobody but a superuser may set hnsw.… for a function.
select '[1]'::extensions.vector;

-- A lexeme as a query for just it, whatever characters it has.
create function private.term(lexeme text, suffix text default '')
returns tsquery
language sql
immutable
parallel safe
set search_path = ''
as $$
  select ('''' || replace(replace(lexeme, '\', '\\'), '''', '''''') || '''' || suffix)::tsquery
$$;

-- What a question asks for in words, each with its weight: the inverse document frequency of BM25 (Robertson and
-- Zaragoza 2009). A word that no passage has stands for the known ones most like it in spelling, and the
-- beginning of an account or a hash for those that begin so. `passages` is how many have it, 0 for none; `share`
-- is the weight as far as it counts among what the question asks; `worth`, from 0 to 1, is how much it tells about a
-- passage to have it, 1 where one passage alone has.
create function private.query_terms(question text)
returns table (
  term tsquery,
  weight double precision,
  share double precision,
  worth double precision,
  passages bigint,
  is_exact boolean
)
language plpgsql  -- whose plans a session keeps, where a function in SQL is planned at every call
stable
set search_path = ''
set plan_cache_mode = 'force_generic_plan'
as $$
#variable_conflict use_column
begin
  return query
  with asked as (
    select lexeme, false as is_exact, private.trigrams(lexeme) as trigrams
    from unnest(tsvector_to_array(to_tsvector('pg_catalog.english', private.prose(question)))) as lexeme
    union
    select lexeme, true, null from unnest(private.identifiers(question)) as lexeme
    union
    select lower(piece[1]), true, null
    from regexp_matches(question, '(?<!\w)((?:0x|[EUk0]Q|\w{2,12}1)\w{3,})', 'g') as piece
    where length(piece[1]) between 6 and 63
    order by is_exact desc, lexeme
    limit 64
  ),

  known as (
    select asked.lexeme, asked.is_exact, lexemes.passages
    from asked
    inner join private.lexemes on lexemes.lexeme = asked.lexeme and lexemes.passages > 0
  ),

  unknown as (
    select * from asked where asked.lexeme not in (select known.lexeme from known)
  ),

  -- A few only: each looks at a good part of the lexemes. Of a question in another language all would be unknown.
  misspelt as (
    select * from unknown
    where unknown.lexeme ~ '^[[:alpha:]]{4,30}$'
    order by unknown.lexeme
    limit 6
  ),

  respelt as (
    select misspelt.lexeme as asked, kin.*, 1.0 / count(*) over (partition by misspelt.lexeme) as part
    from misspelt
    cross join lateral (
      select
        candidate.lexeme,
        candidate.passages,
        common.trigrams::double precision
        / (cardinality(candidate.trigrams) + cardinality(misspelt.trigrams) - common.trigrams) as likeness
      from private.lexemes as candidate
      cross join lateral (
        select count(*) as trigrams
        from unnest(candidate.trigrams) as trigram
        where trigram = any (misspelt.trigrams)
      ) as common
      where candidate.trigrams && misspelt.trigrams
        and candidate.passages > 0
        and abs(length(candidate.lexeme) - length(misspelt.lexeme)) <= 2
      order by likeness desc, candidate.passages desc, candidate.lexeme
      limit 2
    ) as kin
    where kin.likeness >= 0.3
  ),

  begun as (
    select unknown.lexeme as asked, whole.*
    from unknown
    cross join lateral (
      select candidate.lexeme, candidate.passages
      from private.lexemes as candidate
      where candidate.lexeme >= unknown.lexeme
        and candidate.lexeme < unknown.lexeme || '~'
        and candidate.passages > 0
      limit 5
    ) as whole
    where unknown.is_exact and unknown.lexeme !~ '^\$'
  ),

  meant as (
    select lexeme, is_exact, passages, 1.0 as likeness, 1.0 as part from known
    union all
    select lexeme, false, passages, likeness, part from respelt
    union all
    select lexeme, true, passages, 1.0, 0.2 from begun
    union all
    -- Not in the counts, and perhaps in a passage of the caller's own.
    select
      lexeme, is_exact, 0, 1.0,
      case when lexeme in (select asked from respelt union all select asked from begun) then 0 else 1 end
    from unknown
  ),

  weighed as (
    select
      meant.*,
      meant.likeness * ln(1 + (corpus.passages - meant.passages + 0.5) / (meant.passages + 0.5)) as weight,
      ln(1 + (corpus.passages - 0.5) / 1.5) as highest
    from meant
    cross join (
      select coalesce(max(lexemes.passages), 0) as passages from private.lexemes where lexemes.lexeme = ''
    ) as corpus
  )

  select
    private.term(weighed.lexeme, case when weighed.passages = 0 and weighed.is_exact then ':*' else '' end),
    max(weighed.weight),
    max(weighed.weight * weighed.part),
    sqrt(max(least(1, weighed.weight / nullif(weighed.highest, 0)))),
    max(weighed.passages),
    bool_or(weighed.is_exact)
  from weighed
  group by 1;
end
$$;

-- The passages that have the question's words, best first. `score` sums, over the words, their weight times the
-- saturated frequency that ts_rank gives; `coverage` is the share of the question's weight that the passage has,
-- and `is_exact` tells that it names an account the question names; `worth` and `name_worth` are those of the rarest
-- word, and of the rarest name, that it has.
-- Security definer, because row level security would keep @@, which is not leakproof, from the index, and every
-- search would read the whole table. So it looks at public rows and the caller's own, and gives ids alone: the
-- rows are read by the caller, past his policies.
create function private.match_words(
  question text,
  model text,
  symbol text,
  address text,
  category text,
  match_count integer
)
returns table (
  id bigint,
  score double precision,
  coverage double precision,
  is_exact boolean,
  worth double precision,
  name_worth double precision
)
language plpgsql
stable
security definer
set search_path = ''
set cpu_operator_cost = 0.0025
set plan_cache_mode = 'force_custom_plan'
as $$
#variable_conflict use_column
declare
  caller_id constant bigint := private.current_user_id();
  terms tsquery [];
  weights double precision [];
  shares double precision [];
  worths double precision [];
  exact boolean [];
  wanted tsquery;
begin
  -- Common words rank, but only the rare ones call passages in, until two thousand have come: a question of common
  -- words alone goes by its meaning.
  select
    array_agg(asked.term order by asked.term_rank),
    array_agg(asked.weight order by asked.term_rank),
    array_agg(asked.share order by asked.term_rank),
    array_agg(asked.worth order by asked.term_rank),
    array_agg(asked.is_exact order by asked.term_rank),
    string_agg(asked.term::text, ' | ') filter (
      where asked.passages_so_far <= case asked.term_rank when 1 then 5000 else 2000 end
    )::tsquery
  into terms, weights, shares, worths, exact, wanted
  from (
    select
      query_terms.*,
      row_number() over rarest as term_rank,
      sum(query_terms.passages) over rarest as passages_so_far
    from private.query_terms(question) as query_terms
    window rarest as (order by query_terms.passages, query_terms.term::text)
  ) as asked;

  return query
  select found.*
  from (
    select
      knowledge.id,
      sum(asked.weight * frequency.saturated) as score,
      coalesce(sum(asked.share) filter (where frequency.saturated > 0) / nullif(sum(asked.share), 0), 0) as coverage,
      bool_or(asked.is_exact and frequency.saturated > 0) as is_exact,
      coalesce(max(asked.worth) filter (where frequency.saturated > 0), 0) as worth,
      coalesce(max(asked.worth) filter (where frequency.saturated > 0 and asked.is_exact), 0) as name_worth
    from public.finance_knowledge as knowledge
    cross join unnest(terms, weights, shares, worths, exact) as asked (term, weight, share, worth, is_exact)
    cross join lateral (
      select ts_rank('{1, 1, 1, 1}', knowledge.words, asked.term) as saturated
      offset 0  -- or it would be computed for each use
    ) as frequency
    where knowledge.words @@ wanted
      and knowledge.embedding_model = match_words.model
      and (knowledge.owner_id is null or knowledge.owner_id = caller_id)
      and (match_words.symbol is null or knowledge.symbol_key = match_words.symbol)
      and (match_words.address is null or knowledge.address_key = match_words.address)
      and (match_words.category is null or knowledge.category = match_words.category)
    group by knowledge.id
  ) as found
  order by found.score desc, found.id
  limit match_words.match_count;
end
$$;

revoke all on function private.term(text, text), private.query_terms(text) from public, anon, authenticated;
revoke all on function private.match_words(text, text, text, text, text, integer) from public;
grant execute on function private.match_words(text, text, text, text, text, integer)
to anon, authenticated, service_role;

-- Three lists of the passages that bear on a question, fused by reciprocal rank (Cormack, Clarke and Büttcher 2009):
-- the nearest by meaning, the best by words, and those that name a token or an account it names. `score` is 1 for
-- a passage that leads them all; without words there is the first list alone. In the other lists a passage counts as
-- much as the rarest of its words is worth: all of a knowledge base about TON says TON, and nothing follows from it.
-- The constant is smaller than the paper's 60, which is for lists of a thousand: measured best, by little, from 1 on.
-- The order is by the raw operator, or the index would not be used, and then by the full numbers; the iterative
-- scan keeps filtered rows coming, as far as is needed where what passes the filter is not what is near. Each call is
-- planned with its own filters, so that a rare one goes by its index, and with what a distance between 1536 numbers
-- costs: a hundred times the operator that the planner thinks of.
create function private.rank_passages(
  query_embedding extensions.vector(1536),
  question text,
  threshold double precision,
  model text,
  symbol text,
  address text,
  category text,
  row_count integer
)
returns table (id bigint, similarity double precision, score double precision)
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
      'meaning' as list,
      1.0 as worth,
      row_number() over (order by nearest.distance, nearest.id) as place
    from nearest
    union all
    select worded.id, null, 'words', worded.worth, row_number() over (order by worded.score desc, worded.id)
    from worded
    union all
    select worded.id, null, 'names', worded.name_worth, row_number() over (order by worded.score desc, worded.id)
    from worded
    where worded.is_exact
  ),

  fused as (
    select
      listed.id,
      max(listed.distance) as distance,
      least(
        1,  -- sums of fractions come out a little above it in some orders
        sum(listed.worth * (rank_constant + 1) / (rank_constant + listed.place))
        / (select sum(lists.worth) from (select max(worth) as worth from listed group by list) as lists)
      ) as score
    from listed
    group by listed.id
  )

  select ranked.id, ranked.similarity, ranked.score
  from (
    select
      fused.id,
      fused.score,
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

-- The passages for a question, best first: `query_embedding` its vector, `query_text` its words; without words the
-- nearest alone, as the guide has it. A passage is among them that is more similar than the threshold, or that has
-- nearly all the question's words or a name it names. At most 100, of one embedding model: `model`, or the one
-- use_embedding_model has set. Private passages are the caller's own, whoever calls.
-- `diversity`, from 0 to 1, trades score for difference from what is already chosen, by maximal marginal relevance
-- (Carbonell and Goldstein 1998).
create function public.search_finance_knowledge(
  query_embedding extensions.vector(1536),
  query_text text default null,
  match_threshold double precision default 0.7,
  match_count integer default 5,
  model text default null,
  filter_token_symbol text default null,
  filter_token_address text default null,
  filter_category text default null,
  diversity double precision default 0
)
returns table (
  id bigint,
  content text,
  similarity double precision,
  score double precision,
  title text,
  token_symbol text,
  token_address text,
  category text,
  source text,
  metadata jsonb,
  document_id text,
  content_hash text,
  is_private boolean
)
language plpgsql
stable
set search_path = ''
as $$
#variable_conflict use_column
declare
  row_count constant integer := greatest(0, least(match_count, 100));
  distinctness constant double precision := greatest(0, least(coalesce(diversity, 0), 1));
  ids bigint [];
  similarities double precision [];
  scores double precision [];
  embeddings extensions.vector [];
  likenesses double precision [];  -- of each to the most like it of the chosen
  next_place bigint;
  chosen bigint [] := '{}';
begin
  select array_agg(ranked.id), array_agg(ranked.similarity), array_agg(ranked.score)
  into ids, similarities, scores
  from private.rank_passages(
    query_embedding,
    query_text,
    match_threshold,
    coalesce(search_finance_knowledge.model, private.current_embedding_model()),
    upper(ltrim(filter_token_symbol, '$')),
    private.account(filter_token_address),
    filter_category,
    case when distinctness > 0 then greatest(20, 2 * row_count) else row_count end
  ) as ranked;

  if distinctness > 0 then
    select array_agg(knowledge.embedding order by candidate.place), array_agg(null::double precision)
    into embeddings, likenesses
    from unnest(ids) with ordinality as candidate (id, place)
    inner join public.finance_knowledge as knowledge on knowledge.id = candidate.id;
  end if;

  while distinctness > 0 and cardinality(chosen) < least(row_count, coalesce(cardinality(ids), 0)) loop
    select candidate.place into next_place
    from unnest(ids, scores, likenesses) with ordinality as candidate (id, score, likeness, place)
    where candidate.id <> all (chosen)
    order by (1 - distinctness) * candidate.score - distinctness * coalesce(candidate.likeness, 0) desc, candidate.place
    limit 1;

    chosen := chosen || ids[next_place];
    likenesses := array(
      select greatest(candidate.likeness, 1 - (candidate.embedding operator(extensions.<=>) embeddings[next_place]))
      from unnest(likenesses, embeddings) with ordinality as candidate (likeness, embedding, place)
      order by candidate.place
    );
  end loop;

  return query
  select
    knowledge.id, knowledge.content, ranked.similarity, ranked.score, knowledge.title, knowledge.token_symbol,
    knowledge.token_address, knowledge.category, knowledge.source, knowledge.metadata, knowledge.document_id,
    knowledge.content_hash, knowledge.owner_id is not null
  from unnest(ids, similarities, scores) with ordinality as ranked (id, similarity, score, place)
  inner join public.finance_knowledge as knowledge on knowledge.id = ranked.id
  where distinctness = 0 or ranked.id = any (chosen)
  order by array_position(chosen, ranked.id), ranked.place;
end
$$;

revoke all on function private.rank_passages(
  extensions.vector, text, double precision, text, text, text, text, integer
) from public;
revoke all on function public.search_finance_knowledge(
  extensions.vector, text, double precision, integer, text, text, text, text, double precision
) from public;
grant execute on function private.rank_passages(
  extensions.vector, text, double precision, text, text, text, text, integer
) to anon, authenticated, service_role;
grant execute on function public.search_finance_knowledge(
  extensions.vector, text, double precision, integer, text, text, text, text, double precision
) to anon, authenticated, service_role;

-- The guide's call and its four columns; its optional arguments are the search's.
create function public.match_finance_knowledge(
  query_embedding extensions.vector(1536),
  match_threshold double precision default 0.7,
  match_count integer default 5,
  model text default null,
  query_text text default null,
  filter_token_symbol text default null,
  filter_token_address text default null,
  filter_category text default null
)
returns table (id bigint, content text, similarity double precision, token_symbol text)
language sql
stable
set search_path = ''
as $$
  select found.id, found.content, found.similarity, found.token_symbol
  from public.search_finance_knowledge(
    query_embedding => query_embedding,
    query_text => query_text,
    match_threshold => match_threshold,
    match_count => match_count,
    model => model,
    filter_token_symbol => filter_token_symbol,
    filter_token_address => filter_token_address,
    filter_category => filter_category
  ) as found
$$;

revoke all on function public.match_finance_knowledge(
  extensions.vector, double precision, integer, text, text, text, text, text
) from public;
grant execute on function public.match_finance_knowledge(
  extensions.vector, double precision, integer, text, text, text, text, text
) to anon, authenticated, service_role;
