-- The list of documents can be searched.

drop function public.list_documents(integer, text);

-- The documents by id, after the one named; with `containing` those that have it in their id, title, token or category,
-- whatever its case. A passage counts once, however many models embedded it.
create function public.list_documents(
  page_size integer default 50,
  after_id text default null,
  containing text default null
)
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
  where (after_id is null or documents.id > after_id)
    and (
      containing is null
      or position(
        lower(containing) in
        lower(concat_ws(' ', documents.id, documents.title, documents.token_symbol, documents.category))
      ) > 0
    )
  order by documents.id
  limit greatest(0, page_size)
$$;

revoke all on function public.list_documents(integer, text, text) from public, anon;
grant execute on function public.list_documents(integer, text, text) to authenticated, service_role;
