-- A canary's figures begin anew with its weight. Figures of two splits are not to be put together: where users change
-- their minds from one day to the next, whoever has more users on the better day seems the better one (Simpson's
-- paradox), and users who move have been with both.

comment on column public.model_metadata.canary_since is
  'Since when it has been a canary with this weight: a version beside the active one with a part of its users.';

create or replace function private.note_canary()
returns trigger
language plpgsql
set search_path = ''
as $$
begin
  new.canary_since := case
    when new.is_active or coalesce(new.traffic_weight, 0) = 0 then null
    when tg_op = 'UPDATE' and new.traffic_weight is distinct from old.traffic_weight then clock_timestamp()
    else coalesce(new.canary_since, clock_timestamp())
  end;
  return new;
end
$$;
