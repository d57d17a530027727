-- Documents into the knowledge, for admins and the gateway: what is there already is neither embedded nor written anew.

-- Vectors of a document too long for one request, until all of them are here and it can be written as a whole. They
-- are no passages yet, and nobody finds them.
create table private.staged_embeddings (
  content_hash text not null,
  embedding_model text not null,
  embedding extensions.vector(1536) not null,
  staged_at timestamptz not null default now(),
  primary key (content_hash, embedding_model)
);

create index staged_embeddings_staged_at_idx on private.staged_embeddings (staged_at);

alter table private.staged_embeddings enable row level security;

create policy "admins can read staged embeddings"
on private.staged_embeddings for select to authenticated
using ((select private.is_admin()));

create policy "admins can stage embeddings"
on private.staged_embeddings for insert to authenticated
with check ((select private.is_admin()));

create policy "admins can delete staged embeddings"
on private.staged_embeddings for delete to authenticated
using ((select private.is_admin()));

grant select, insert, delete on private.staged_embeddings to authenticated, service_role;

-- Those of the given passages' hashes that no vector of the model is stored for.
create function public.missing_passages(hashes text[], model text)
returns setof text
language sql
stable
set search_path = ''
as $$
  select distinct hash
  from unnest(hashes) as hash
  where not exists (
    select 1 from public.finance_knowledge as knowledge
    where knowledge.content_hash = hash and knowledge.embedding_model = model
  )
  and not exists (
    select 1 from private.staged_embeddings as staged
    where staged.content_hash = hash and staged.embedding_model = model
  )
$$;

-- Keeps vectors, an object of them by hash, for put_documents to come; those that never came are swept after a day.
create function public.stage_embeddings(vectors jsonb, model text)
returns void
language sql
set search_path = ''
as $$
  delete from private.staged_embeddings where staged_at < now() - interval '1 day';

  insert into private.staged_embeddings (content_hash, embedding_model, embedding)
  select given.key, model, given.value::extensions.vector
  from jsonb_each_text(vectors) as given
  on conflict do nothing
$$;

-- One document and its passages, whole or not at all. Raises where a passage has neither a vector nor a stored one.
create function private.put_document(document jsonb, model text)
returns jsonb
language plpgsql
set search_path = ''
as $$
declare
  stored public.documents;
  given public.documents := jsonb_populate_record(null::public.documents, document - 'passages');
  hashes constant text[] := array(
    select passage ->> 'content_hash' from jsonb_array_elements(document -> 'passages') as passage
  );
  written bigint;
begin
  given.metadata := coalesce(given.metadata, '{}');
  select * into stored from public.documents where documents.id = given.id for update;

  if to_jsonb(stored) - '{created_at,updated_at}'::text[] = to_jsonb(given) - '{created_at,updated_at}'::text[]
    and not exists (
      select hash from unnest(hashes) as hash
      except
      select content_hash from public.finance_knowledge
      where document_id = given.id and embedding_model = model
    )
  then
    return jsonb_build_object(
      'id', given.id, 'outcome', 'unchanged', 'passages', cardinality(hashes), 'written', 0
    );
  end if;

  insert into public.documents (
    id, title, category, token_symbol, token_address, source, metadata, owner_id, content_hash
  )
  values (
    given.id, given.title, given.category, given.token_symbol, given.token_address, given.source, given.metadata,
    given.owner_id, given.content_hash
  )
  on conflict (id) do update  -- of which private.tell_passages tells the passages
  set
    title = excluded.title,
    category = excluded.category,
    token_symbol = excluded.token_symbol,
    token_address = excluded.token_address,
    source = excluded.source,
    metadata = excluded.metadata,
    owner_id = excluded.owner_id,
    content_hash = excluded.content_hash,
    updated_at = now();

  delete from public.finance_knowledge
  where document_id = given.id and content_hash <> all (hashes);

  update public.finance_knowledge as knowledge
  set position = place.ordinality
  from unnest(hashes) with ordinality as place (hash)
  where knowledge.document_id = given.id
    and knowledge.content_hash = place.hash
    and knowledge.position is distinct from place.ordinality;

  insert into public.finance_knowledge (
    content, title, content_hash, embedding, embedding_model, category, token_symbol, token_address, source,
    metadata, owner_id, document_id, position
  )
  select
    passage.value ->> 'content',
    passage.value ->> 'title',
    passage.value ->> 'content_hash',
    coalesce(
      (passage.value ->> 'embedding')::extensions.vector,
      (
        select twin.embedding from public.finance_knowledge as twin
        where twin.content_hash = passage.value ->> 'content_hash' and twin.embedding_model = model
        limit 1
      ),
      (
        select staged.embedding from private.staged_embeddings as staged
        where staged.content_hash = passage.value ->> 'content_hash' and staged.embedding_model = model
      )
    ),
    model, given.category, given.token_symbol, given.token_address, given.source, given.metadata, given.owner_id,
    given.id, passage.ordinality
  from jsonb_array_elements(document -> 'passages') with ordinality as passage (value)
  where not exists (
    select 1 from public.finance_knowledge as there
    where there.document_id = given.id
      and there.content_hash = passage.value ->> 'content_hash'
      and there.embedding_model = model
  );

  get diagnostics written = row_count;

  delete from private.staged_embeddings
  where content_hash = any (hashes) and embedding_model = model;

  return jsonb_build_object(
    'id', given.id,
    'outcome', case when stored.id is null then 'created' else 'updated' end,
    'passages', cardinality(hashes),
    'written', written
  );
end
$$;

-- Each document by itself, the outcomes in the order they came: {"id", "outcome", "passages", "written"}, or
-- {"id", "outcome": "failed", "error"}. The first to be put into an empty knowledge base makes its model the one that
-- plain searches mean. PostgREST takes the timeout from here: a long document's passages take 10 ms each.
create function public.put_documents(documents jsonb, model text)
returns jsonb
language plpgsql
set search_path = ''
set statement_timeout = '60s'
as $$
declare
  document jsonb;
  outcomes jsonb := '[]';
begin
  if current_user = 'authenticated' and not private.is_admin() then
    raise insufficient_privilege using message = 'only admins put documents';
  end if;

  perform private.queue_as_writer();

  for document in select value from jsonb_array_elements(documents) loop
    begin
      outcomes := outcomes || private.put_document(document, model);
    exception
      when insufficient_privilege then raise;
      when data_exception or integrity_constraint_violation or program_limit_exceeded then
        outcomes := outcomes || jsonb_build_object('id', document -> 'id', 'outcome', 'failed', 'error', sqlerrm);
    end;
  end loop;

  insert into private.knowledge_base (embedding_model)
  select put_documents.model
  where not exists (select 1 from private.knowledge_base)
    and exists (select 1 from public.finance_knowledge where embedding_model = put_documents.model)
    and not exists (select 1 from public.finance_knowledge where embedding_model <> put_documents.model)
  on conflict (is_only) do nothing;
  return outcomes;
end
$$;

-- From now on the searches that name no model mean this one.
create function public.use_embedding_model(model text)
returns void
language sql
set search_path = ''
as $$
  insert into private.knowledge_base (embedding_model) values (model)
  on conflict (is_only) do update
  set embedding_model = excluded.embedding_model
$$;

revoke all on function
public.missing_passages(text[], text),
public.stage_embeddings(jsonb, text),
private.put_document(jsonb, text),
public.put_documents(jsonb, text),
public.use_embedding_model(text)
from public, anon;
grant execute on function
public.missing_passages(text[], text),
public.stage_embeddings(jsonb, text),
private.put_document(jsonb, text),
public.put_documents(jsonb, text),
public.use_embedding_model(text)
to authenticated, service_role;
