-- The words of questions and passages: accounts of the masterchain in all their forms, tickers whole, and of a long
-- question the rarest words.

-- One spelling for all that name one account: a TON account by its workchain and hash (EQ…, UQ… and 0:… are forms of
-- it, on the masterchain Ef…, Uf… and -1:…, on a test network k… and 0…, TEP-2), everything else in small letters. On
-- the masterchain the third sign is one of five, which words like Effect don't have.
create or replace function private.account(address text)
returns text
language sql
immutable
parallel safe
strict
set search_path = ''
as $$
  select case
    when address ~ '^[EUk0](?:Q[A-Za-z0-9_+/-]|f[89_+/-])[A-Za-z0-9_+/-]{45}$' then (
      select case get_byte(bytes, 1) when 255 then '-1:' else get_byte(bytes, 1) || ':' end
        || encode(substring(bytes from 3 for 32), 'hex')
      from (select decode(translate(address, '-_', '+/'), 'base64') as bytes) as decoded
    )
    else lower(address)
  end
$$;

-- What a text names exactly, and stemming would blur: tickers as $TON (written $ton, TON, or stTON), accounts,
-- hashes and denominations whole. None is longer than 256 characters: a word of a tsvector holds 2,046 bytes.
create or replace function private.identifiers(passage text)
returns text[]
language sql
immutable
parallel safe
set search_path = ''
as $$
  select coalesce(array_agg(distinct identifier), '{}')
  from (
    select '$' || upper(ticker[1]) as identifier
    from regexp_matches(passage, '\$([A-Za-z][A-Za-z0-9]{0,11})(?![A-Za-z0-9])', 'g') as ticker
    union all
    select '$' || upper(ticker[1])
    from regexp_matches(passage, '(?<![\w$.-])([a-z]{0,4}[A-Z][A-Z0-9]{1,11})(?![\w-])', 'g') as ticker
    union all
    select lower(named[1])
    from regexp_matches(
      passage, '(?<![\w-])([\w-]*\d[\w-]*|[EUk0](?:Q[\w-]|f[89_-])[\w-]{45})(?![\w-])', 'g'
    ) as named
    where length(named[1]) between 20 and 256
    union all
    select private.account(named[1])
    from regexp_matches(
      passage,
      '(?<![\w+-])([EUk0](?:Q[\w/+-]|f[89_/+-])[\w/+-]{45}|-?\d:[0-9a-fA-F]{64})(?![\w/+-])',
      'g'
    ) as named
    union all
    select lower(named[1])
    from regexp_matches(passage, '(?<![\w/])((?:ibc|factory)/[\w/.-]*\w)', 'g') as named
    where length(named[1]) <= 256
  ) as found
$$;

-- What is kept of both is made anew where a passage names such an account.
update public.finance_knowledge
set title = title, content = content, token_symbol = token_symbol, token_address = token_address
where concat_ws(' ', title, content, token_address) ~ '[EUk0]f[89_/+-][\w/+-]{45}';

-- What a question asks for in words, each with its weight: the inverse document frequency of BM25 (Robertson and
-- Zaragoza 2009). Of its first 20,000 characters, the 64 rarest words that passages have, then those that none has;
-- and 32 names. A word that no passage has stands for the known ones most like it in spelling, and the
-- beginning of an account or a hash for those that begin so. `passages` is how many have it, 0 for none; `share`
-- is the weight as far as it counts among what the question asks; `worth`, from 0 to 1, is how much it tells about a
-- passage to have it, 1 where one passage alone has.
create or replace function private.query_terms(question text)
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
declare
  said constant text := left(question, 20000);
begin
  return query
  with asked as (
    select lexeme, false as is_exact
    from unnest(tsvector_to_array(to_tsvector('pg_catalog.english', private.prose(said)))) as lexeme
    union
    select lexeme, true from unnest(private.identifiers(said)) as lexeme
    union
    select lower(piece[1]), true
    from regexp_matches(said, '(?<!\w)((?:0x|[EUk0](?:Q|f[89_-])|\w{2,12}1)\w{3,})', 'g') as piece
    where length(piece[1]) between 6 and 63
  ),

  counted as (
    select
      asked.lexeme,
      asked.is_exact,
      lexemes.passages,
      row_number() over (
        partition by asked.is_exact
        order by lexemes.passages, asked.lexeme ~ '^\$', asked.lexeme
      ) as place
    from asked
    left join private.lexemes on lexemes.lexeme = asked.lexeme and lexemes.passages > 0
  ),

  known as (
    select counted.lexeme, counted.is_exact, counted.passages
    from counted
    where counted.passages is not null and counted.place <= case when counted.is_exact then 32 else 64 end
  ),

  unknown as (
    select counted.lexeme, counted.is_exact
    from counted
    where counted.passages is null and counted.place <= case when counted.is_exact then 32 else 64 end
  ),

  -- A few only: each looks at a good part of the lexemes. Of a question in another language all would be unknown.
  misspelt as materialized (  -- or the pieces would be cut anew for each candidate
    select few.lexeme, private.trigrams(few.lexeme) as trigrams
    from (
      select unknown.lexeme
      from unknown
      where not unknown.is_exact and unknown.lexeme ~ '^[[:alpha:]]{4,30}$'
      order by unknown.lexeme
      limit 6
    ) as few
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
      ln(1 + (greatest(1, corpus.passages) - 0.5) / 1.5) as highest
    from meant
    cross join (
      select coalesce(max(lexemes.passages), 0) as passages from private.lexemes where lexemes.lexeme = ''
    ) as corpus
  )

  -- A ticker is whole: $US begins $USDT, and is none.
  select
    private.term(
      weighed.lexeme,
      case when max(weighed.passages) = 0 and bool_or(weighed.is_exact) and weighed.lexeme !~ '^\$' then ':*' else '' end
    ),
    max(weighed.weight),
    max(weighed.weight * weighed.part),
    sqrt(max(least(1, weighed.weight / nullif(weighed.highest, 0)))),
    max(weighed.passages),
    bool_or(weighed.is_exact)
  from weighed
  group by weighed.lexeme;  -- not by the term: with and without :* it is the same to PostgreSQL
end
$$;
