-- The corpus: how training_data is kept right when its rows, or the conversations they come from, change or go.

-- How far the conversations have been brought in, and by which rules. In private, for nobody but the gateway has
-- business here.
create table private.corpus (
  only_row boolean primary key default true check (only_row),
  collected_until xid8 not null default '0',
  rules text not null default ''
);

comment on column private.corpus.collected_until is 'What was changed in an earlier transaction is in the corpus.';
comment on column private.corpus.rules is 'The rules that its rows were assessed by.';

alter table private.corpus enable row level security;

grant select, update on private.corpus to service_role;

insert into private.corpus default values;

-- Whoever changes which rows are kept takes his turn, for it depends on rows that another may be about to write. It is
-- taken after the locks of conversations and users and before those of training_data, so that nobody waits for one who
-- waits for him.
create function private.queue_for_corpus()
returns void
language sql
set search_path = ''
as $$
  select pg_advisory_xact_lock(hashtextextended('corpus', 0))
$$;

revoke all on function private.queue_for_corpus() from public, anon, authenticated;
grant execute on function private.queue_for_corpus() to service_role;

-- Decides anew which rows are kept of those that say the same, and what they are worth: of these content_hashes, and
-- of what was too much like the rows that are `gone`, or aren't what they were. Rows that are dropped for themselves
-- have no say. As many likes as dislikes are a conflict; more dislikes, and all are disliked; else the one with the
-- most merit is kept, of several the newest. A row without a conversation counts as liked, and keeps its score. Few
-- rows are written, however many say the same: a duplicate stays one of the row that it became one of. For those who
-- have queued.
create function private.settle_groups(hashes bytea[], gone bigint[] default '{}')
returns void
language plpgsql
set search_path = ''
set enable_seqscan = off  -- a plan made when the table was small would stay
set enable_hashjoin = off
set enable_mergejoin = off
as $$
declare
  no_more bigint[];
begin
  with members as (
    select
      rows.id, rows.content_hash, rows.merit, rows.conversation_id, rows.dropped, rows.duplicate_of,
      case when rows.conversation_id is null then rows.quality_score end as written_score,
      case when rows.conversation_id is null then 1 else coalesce(conversations.feedback, 0) end as feedback
    from (select distinct hash from unnest(hashes) as given (hash)) as groups
    inner join public.training_data as rows on rows.content_hash = groups.hash
    left join public.conversations on conversations.id = rows.conversation_id
    where rows.dropped is null or rows.dropped in ('conflict', 'disliked', 'duplicate', 'near_duplicate')
  ),

  counted as (
    select
      *,
      sum(feedback) over same as votes,
      count(*) filter (where feedback > 0) over same as likes,
      count(*) filter (where feedback < 0) over same as dislikes,
      first_value(id) over (
        partition by content_hash order by merit desc nulls last, conversation_id desc nulls last, id desc
      ) as best
    from members
    window same as (partition by content_hash)
  ),

  judged as (
    select
      id, votes, best, dropped as was_dropped, duplicate_of as was_duplicate_of,
      coalesce(
        written_score,
        round((merit + case when votes > 0 then 0.4 when votes = 0 then 0.2 else 0 end) * 10000) / 10000
      ) as quality_score,
      case
        when likes = dislikes and likes > 0 then 'conflict'
        when votes < 0 then 'disliked'
        when id <> best then 'duplicate'
        when dropped = 'near_duplicate' then 'near_duplicate'
      end as dropped
    from counted
  ),

  told as (
    select
      id, quality_score, dropped,
      case when dropped is distinct from 'duplicate' then votes end as votes,
      case
        when dropped = 'near_duplicate' then was_duplicate_of
        when dropped = 'duplicate' and was_dropped = 'duplicate' and not was_duplicate_of = any(coalesce(gone, '{}'))
          then was_duplicate_of
        when dropped = 'duplicate' then best
      end as duplicate_of
    from judged
  ),

  changed as (
    update public.training_data as rows
    set
      votes = told.votes,
      quality_score = told.quality_score,
      dropped = told.dropped,
      duplicate_of = told.duplicate_of,
      changed_in = case
        when (rows.quality_score, rows.dropped) is distinct from (told.quality_score, told.dropped)
          then pg_current_xact_id()
        else rows.changed_in
      end
    from told
    where rows.id = told.id
      and (rows.votes, rows.quality_score, rows.dropped, rows.duplicate_of)
      is distinct from (told.votes, told.quality_score, told.dropped, told.duplicate_of)
    returning rows.id, rows.dropped
  )

  select coalesce(gone, '{}') || coalesce(array_agg(changed.id) filter (where changed.dropped <> 'near_duplicate'), '{}')
  into no_more
  from changed;

  update public.training_data as rows
  set dropped = null, duplicate_of = null, changed_in = pg_current_xact_id()
  where rows.dropped = 'near_duplicate' and rows.duplicate_of = any(no_more);
end
$$;

revoke all on function private.settle_groups(bytea[], bigint[]) from public, anon, authenticated;
grant execute on function private.settle_groups(bytea[], bigint[]) to service_role;

create function private.queue_to_change_rows()
returns trigger
language plpgsql
set search_path = ''
as $$
begin
  perform private.queue_for_corpus();
  return null;
end
$$;

revoke all on function private.queue_to_change_rows() from public, anon, authenticated;

create trigger queue_to_change_rows before update or delete on public.training_data
for each statement execute function private.queue_to_change_rows();

-- A row that was written by hand is assessed anew when somebody changes its text.
create function private.forget_assessment()
returns trigger
language plpgsql
set search_path = ''
as $$
begin
  new.content_hash := null;
  new.changed_in := pg_current_xact_id();
  return new;
end
$$;

revoke all on function private.forget_assessment() from public, anon, authenticated;

create trigger forget_assessment before update of instruction, input, output on public.training_data
for each row when (
  new.conversation_id is null
  and new.content_hash is not distinct from old.content_hash
  and (new.instruction, new.input, new.output) is distinct from (old.instruction, old.input, old.output)
)
execute function private.forget_assessment();

create function private.settle_without_row()
returns trigger
language plpgsql
set search_path = ''
as $$
begin
  perform private.settle_groups(array[old.content_hash], array[old.id]);
  return null;
end
$$;

revoke all on function private.settle_without_row() from public, anon, authenticated;

create trigger settle_without_row after update of instruction, input, output, content_hash on public.training_data
for each row when (old.content_hash is not null and new.content_hash is null)
execute function private.settle_without_row();

create function private.settle_without_rows()
returns trigger
language plpgsql
set search_path = ''
as $$
begin
  perform private.settle_groups(array_agg(gone.content_hash), array_agg(gone.id)) from gone having count(*) > 0;
  return null;
end
$$;

revoke all on function private.settle_without_rows() from public, anon, authenticated;

create trigger settle_without_rows after delete on public.training_data
referencing old table as gone
for each statement execute function private.settle_without_rows();

-- Deletes the rows of conversations that are gone. Those that came later in their threads have them among their turns,
-- and are collected anew; locked by their ids, so that two who delete don't wait for each other. Security definer, as
-- are the next two, because whoever deletes or rates a conversation may have no rights on the training data. They queue
-- in any case: a row may be about to be written.
create function private.forget_conversations()
returns trigger
language plpgsql
security definer
set search_path = ''
set enable_seqscan = off  -- a plan made when the table was small would stay
set enable_hashjoin = off
set enable_mergejoin = off
as $$
declare
  later_ids bigint[];
begin
  select array_agg(locked.id) into later_ids
  from (
    select later.id
    from (select user_id, thread_id, min(id) as first_id from gone group by user_id, thread_id) as threads
    inner join public.conversations as later
      on later.user_id = threads.user_id and later.thread_id = threads.thread_id and later.id > threads.first_id
    where later.feedback is not null
    order by later.id
    for no key update of later
  ) as locked;
  if later_ids is not null then
    update public.conversations set changed_in = pg_current_xact_id() where id = any(later_ids);
  end if;

  if exists (select from gone where feedback is not null) then
    perform private.queue_for_corpus();
    delete from public.training_data where conversation_id in (select id from gone where feedback is not null);
  end if;
  return null;
end
$$;

revoke all on function private.forget_conversations() from public, anon, authenticated;

create trigger forget_conversations after delete on public.conversations
referencing old table as gone
for each statement execute function private.forget_conversations();

-- What nobody rates any more is not learned from.
create function private.forget_unrated()
returns trigger
language plpgsql
security definer
set search_path = ''
as $$
begin
  perform private.queue_for_corpus();
  delete from public.training_data where conversation_id = new.id;
  return null;
end
$$;

revoke all on function private.forget_unrated() from public, anon, authenticated;

create trigger forget_unrated after update of feedback on public.conversations
for each row when (old.feedback is not null and new.feedback is null)
execute function private.forget_unrated();

-- What a user has rated is brought in by the next export when he consents, and is out at once when he doesn't any more.
create function private.follow_training_consent()
returns trigger
language plpgsql
security definer
set search_path = ''
as $$
begin
  if new.training_consent then
    update public.conversations set changed_in = pg_current_xact_id()
    where user_id = new.user_id and feedback is not null;
  else
    perform private.queue_for_corpus();
    delete from public.training_data
    where conversation_id in (select id from public.conversations where user_id = new.user_id);
  end if;
  return null;
end
$$;

revoke all on function private.follow_training_consent() from public, anon, authenticated;

create trigger follow_training_consent after update of training_consent on public.users
for each row when (old.training_consent is distinct from new.training_consent)
execute function private.follow_training_consent();
