-- The guide has two tables of passages with embeddings, and uses now the one, now the other. Here there is one
-- knowledge base: finance_embeddings is finance_knowledge under the guide's other name and columns, to read and to
-- write, under the same policies.

create view public.finance_embeddings with (security_invoker = true) as
select
  id,
  content,
  embedding,
  metadata,
  token_symbol,
  token_address,
  created_at,
  embedding_model
from public.finance_knowledge;

revoke all on public.finance_embeddings from anon, authenticated;
grant select on public.finance_embeddings to anon;
grant select, insert, update, delete on public.finance_embeddings to authenticated;
grant all on public.finance_embeddings to service_role;

-- The guide calls it once without a threshold and once with: both have a default.
create function public.match_finance_embeddings(
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
  from public.match_finance_knowledge(
    query_embedding, match_threshold, match_count, model, query_text, filter_token_symbol, filter_token_address,
    filter_category
  ) as found
$$;

revoke all on function public.match_finance_embeddings(
  extensions.vector, double precision, integer, text, text, text, text, text
) from public;
grant execute on function public.match_finance_embeddings(
  extensions.vector, double precision, integer, text, text, text, text, text
) to anon, authenticated, service_role;
