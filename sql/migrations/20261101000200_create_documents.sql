-- What the knowledge is made of: documents, which admins write and whose passages the searches find. One with an
-- owner is seen by that user only.

-- Whether the caller is an admin: app_metadata is written by the project's owner, never by the user himself.
create function private.is_admin()
returns boolean
language sql
stable
set search_path = ''
as $$
  select coalesce(auth.jwt() -> 'app_metadata' ->> 'role' = 'admin', false)
$$;

revoke all on function private.is_admin() from public, anon;
grant execute on function private.is_admin() to authenticated, service_role;

create table public.documents (
  id text primary key check (length(id) between 1 and 255),
  title text,
  category text,
  token_symbol text,
  token_address text,
  source text,
  metadata jsonb not null default '{}' check (jsonb_typeof(metadata) = 'object'),
  owner_id bigint references public.users (user_id) on delete cascade,
  content_hash text not null,
  created_at timestamptz not null default now(),
  updated_at timestamptz not null default now()
);

comment on column public.documents.owner_id is 'The users.user_id that alone may see it; null: everybody may.';
comment on column public.documents.content_hash is 'SHA-256, in hex, of all that makes its passages.';

create index documents_owner_id_idx on public.documents (owner_id);

alter table public.documents enable row level security;

create policy "everybody can read public documents"
on public.documents for select to anon, authenticated
using (owner_id is null);

create policy "users can read their own documents"
on public.documents for select to authenticated
using (owner_id = (select private.current_user_id()));

create policy "admins can read every document"
on public.documents for select to authenticated
using ((select private.is_admin()));

create policy "admins can add documents"
on public.documents for insert to authenticated
with check ((select private.is_admin()));

create policy "admins can change documents"
on public.documents for update to authenticated
using ((select private.is_admin()))
with check ((select private.is_admin()));

create policy "admins can delete documents"
on public.documents for delete to authenticated
using ((select private.is_admin()));

revoke all on public.documents from anon, authenticated;
grant select on public.documents to anon;
grant select, insert, update, delete on public.documents to authenticated;
grant all on public.documents to service_role;
