-- What admins and the gateway do with the knowledge besides putting it: list it, and move it to another embedding
-- model while searches go on with the old one.

-- The documents by id, after the one named; a passage counts once, however many models embedded it.
create function public.list_documents(page_size integer default 50, after_id text default null)
returns table (
  id text,
  title text,
  category text,
  token_symbol text,
  token_address text,
  source text,
  metadata jsonb,
  owner_id bigint,
  passages bigint,
  updated_at timestamptz
)
language sql
stable
set search_path = ''
as $$
  select
    documents.id,
    documents.title,
    documents.category,
    documents.token_symbol,
    documents.token_address,
    documents.source,
    documents.metadata,
    documents.owner_id,
    (
      select count(distinct knowledge.content_hash) from public.finance_knowledge as knowledge
      where knowledge.document_id = documents.id
    ) as passages,
    documents.updated_at
  from public.documents
  where after_id is null or documents.id > after_id
  order by documents.id
  limit greatest(0, page_size)
$$;

-- The models that embedded what is stored, and which of them plain searches mean.
create function public.list_embedding_models()
returns table (model text, passages bigint, is_current boolean)
language sql
stable
set search_path = ''
as $$
  select embedding_model, count(*), embedding_model = (select private.current_embedding_model())
  from public.finance_knowledge
  group by embedding_model
  order by embedding_model
$$;

-- The passages that have no row of the model yet, of all models or of one, by id, after the one named.
create function public.list_passages_to_embed(
  model text,
  after_id bigint default 0,
  page_size integer default 50,
  of_model text default null
)
returns table (id bigint, title text, content text)
language sql
stable
set search_path = ''
set statement_timeout = '60s'
as $$
  select knowledge.id, knowledge.title, knowledge.content
  from public.finance_knowledge as knowledge
  where knowledge.embedding_model <> model
    and (of_model is null or knowledge.embedding_model = of_model)
    and knowledge.id > after_id
    and not exists (
      select 1 from public.finance_knowledge as twin
      where twin.content_hash = knowledge.content_hash
        and twin.embedding_model = model
        and (twin.document_id, twin.owner_id, twin.token_symbol, twin.token_address)
        is not distinct from (knowledge.document_id, knowledge.owner_id, knowledge.token_symbol, knowledge.token_address)
    )
  order by knowledge.id
  limit greatest(0, page_size)
$$;

-- Rows of another model beside the passages named in `vectors`, an array of {"id", "embedding"}; returns how many are
-- new. A passage that is gone by now, or has its row already, is passed over.
create function public.add_embeddings(model text, vectors jsonb)
returns integer
language plpgsql
set search_path = ''
set statement_timeout = '60s'
as $$
declare
  added integer;
begin
  if current_user = 'authenticated' and not private.is_admin() then
    raise insufficient_privilege using message = 'only admins add embeddings';
  end if;

  perform private.queue_as_writer();  -- so that the passages are read as the writer before left them

  insert into public.finance_knowledge (
    content, title, content_hash, embedding, embedding_model, category, token_symbol, token_address, source,
    metadata, owner_id, document_id, position
  )
  select distinct on (
    knowledge.content_hash, knowledge.document_id, knowledge.owner_id, knowledge.token_symbol, knowledge.token_address
  )
    knowledge.content, knowledge.title, knowledge.content_hash, given.embedding::extensions.vector, model,
    knowledge.category, knowledge.token_symbol, knowledge.token_address, knowledge.source, knowledge.metadata,
    knowledge.owner_id, knowledge.document_id, knowledge.position
  from jsonb_to_recordset(vectors) as given (id bigint, embedding text)
  inner join public.finance_knowledge as knowledge on knowledge.id = given.id
  where not exists (
    select 1 from public.finance_knowledge as twin
    where twin.content_hash = knowledge.content_hash
      and twin.embedding_model = model
      and (twin.document_id, twin.owner_id, twin.token_symbol, twin.token_address)
      is not distinct from (knowledge.document_id, knowledge.owner_id, knowledge.token_symbol, knowledge.token_address)
  );

  get diagnostics added = row_count;
  return added;
end
$$;

-- Deletes up to `row_count` rows of a model that is not in use; returns how many.
create function public.drop_embeddings(model text, row_count integer default 1000)
returns integer
language plpgsql
set search_path = ''
set statement_timeout = '60s'
as $$
declare
  dropped integer;
begin
  delete from public.finance_knowledge
  where id = any(array(
    select knowledge.id from public.finance_knowledge as knowledge
    where knowledge.embedding_model = model and model <> private.current_embedding_model()
    order by knowledge.id
    limit greatest(0, row_count)
  ));

  get diagnostics dropped = row_count;
  return dropped;
end
$$;

revoke all on function
public.list_documents(integer, text),
public.list_embedding_models(),
public.list_passages_to_embed(text, bigint, integer, text),
public.add_embeddings(text, jsonb),
public.drop_embeddings(text, integer)
from public, anon;
grant execute on function
public.list_documents(integer, text),
public.list_embedding_models(),
public.list_passages_to_embed(text, bigint, integer, text),
public.add_embeddings(text, jsonb),
public.drop_embeddings(text, integer)
to authenticated, service_role;
