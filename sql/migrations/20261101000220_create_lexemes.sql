-- How often the knowledge says each word: what makes a rare word weigh more than a common one, and a misspelt
-- word findable. Of public passages only, so that nobody learns from it what another's say.

-- The three-letter pieces of a word with its ends, as pg_trgm cuts it (which not every PostgreSQL has).
create function private.trigrams(word text)
returns text[]
language sql
immutable
parallel safe
set search_path = ''
as $$
  select coalesce(array_agg(distinct substr('  ' || word || ' ', place, 3)), '{}')
  from generate_series(1, length(word) + 1) as place
$$;

-- `passages` of the empty lexeme is the number of all passages.
create table private.lexemes (
  lexeme text collate "C" primary key,
  passages bigint not null,
  trigrams text[] generated always as (
    case when lexeme ~ '^[[:alpha:]]{3,30}$' then private.trigrams(lexeme) end
  ) stored
) with (fillfactor = 50);  -- room for the next count on the same page, past the index

alter table private.lexemes enable row level security;  -- the functions that count and weigh pass it as its owner

create index lexemes_trigrams_idx on private.lexemes using gin (trigrams);

-- Writers of knowledge queue before they lock anything else, or two of them could wait for each other's documents
-- and words for ever. Those who may write nothing hold up nobody.
create function private.queue_as_writer()
returns void
language plpgsql
set search_path = ''
as $$
begin
  if current_user <> 'authenticated' or private.is_admin() then
    perform pg_advisory_xact_lock(hashtextextended('private.lexemes', 0));
  end if;
end
$$;

create function private.queue_writers()
returns trigger
language plpgsql
set search_path = ''
as $$
begin
  perform private.queue_as_writer();
  return null;
end
$$;

revoke all on function private.queue_as_writer(), private.queue_writers() from public, anon, authenticated;
grant execute on function private.queue_as_writer() to authenticated, service_role;

create trigger queue_writers before insert or update or delete on public.documents
for each statement execute function private.queue_writers();

create trigger queue_writers before insert or update or delete on public.finance_knowledge
for each statement execute function private.queue_writers();

-- Security definer, because those who write passages have no rights on the counts.
create function private.count_lexemes()
returns trigger
language plpgsql
security definer
set search_path = ''
as $$
declare
  gone constant text := 'select words, -1 as passages from old_rows where owner_id is null';
  come constant text := 'select words, 1 as passages from new_rows where owner_id is null';
begin
  -- What an update leaves as it was sums up to 0, and is not touched.
  execute format(
    $counting$
      insert into private.lexemes as stored (lexeme, passages)
      select counted.lexeme, sum(changed.passages)
      from (%s) as changed
      cross join lateral unnest('{""}'::text[] || tsvector_to_array(changed.words)) as counted (lexeme)
      group by counted.lexeme
      having sum(changed.passages) <> 0
      on conflict (lexeme) do update set passages = stored.passages + excluded.passages
    $counting$,
    case tg_op when 'INSERT' then come when 'DELETE' then gone else gone || ' union all ' || come end
  );
  return null;
end
$$;

revoke all on function private.count_lexemes(), private.trigrams(text) from public, anon, authenticated;

create trigger count_new_lexemes after insert on public.finance_knowledge
referencing new table as new_rows
for each statement execute function private.count_lexemes();

create trigger count_changed_lexemes after update on public.finance_knowledge
referencing old table as old_rows new table as new_rows
for each statement execute function private.count_lexemes();

create trigger count_gone_lexemes after delete on public.finance_knowledge
referencing old table as old_rows
for each statement execute function private.count_lexemes();

create function private.forget_lexemes()
returns trigger
language plpgsql
security definer
set search_path = ''
as $$
begin
  truncate private.lexemes;
  return null;
end
$$;

revoke all on function private.forget_lexemes() from public, anon, authenticated;

create trigger forget_lexemes after truncate on public.finance_knowledge
for each statement execute function private.forget_lexemes();
