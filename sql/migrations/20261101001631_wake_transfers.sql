-- Transfers go on whose messages were lost.

-- Those that nobody has been heard of for so long, the longest first, a hundred at most: {"ids": […]}. They count as
-- heard of now, so that none is told of again before as long. An upload waits for its user until he has it checked, and
-- again after a check has found something wrong.
create function public.wake_transfers(idle_seconds integer)
returns jsonb
language plpgsql
set search_path = ''
as $$
declare
  ids bigint[];
begin
  -- Of one that nobody has claimed yet, the time begins here. Who claims it now has its row locked.
  insert into private.transfers (model_id, worker, expires_at)
  select rows.id, gen_random_uuid(), clock_timestamp()
  from public.model_metadata as rows
  where rows.status in ('uploading', 'transferring') and rows.source <> 'upload' and rows.progress ? 'files'
    and not exists (select from private.transfers where transfers.model_id = rows.id)
  for key share of rows skip locked
  on conflict do nothing;

  with idle as (
    select transfers.model_id
    from private.transfers
    join public.model_metadata as rows on rows.id = transfers.model_id
    where transfers.expires_at <= clock_timestamp() - make_interval(secs => idle_seconds)
      and rows.status in ('uploading', 'transferring') and rows.progress ? 'files'
      and not (
        rows.source = 'upload' and exists (
          select from public.model_history as past
          where past.model_name = rows.model_name and past.version = rows.version
            and past.action = 'not_finalized' and past.created_at >= transfers.expires_at
        )
      )
    order by transfers.expires_at
    limit 100
    for update of transfers skip locked
  ),

  woken as (
    update private.transfers
    set expires_at = clock_timestamp()
    from idle
    where transfers.model_id = idle.model_id
    returning transfers.model_id
  )

  select coalesce(array_agg(woken.model_id order by woken.model_id), '{}') into ids from woken;

  return jsonb_build_object('ids', ids);
end
$$;

revoke all on function public.wake_transfers(integer) from public, anon, authenticated;
grant execute on function public.wake_transfers(integer) to service_role;
