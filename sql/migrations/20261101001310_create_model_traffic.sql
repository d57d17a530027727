-- Which versions of a model have users: activation, canaries, rollbacks, all of it written into the history.

-- The version of a name that is active, or null.
create function private.active_version(model_name text)
returns public.model_metadata
language sql
stable
set search_path = ''
as $$
  select * from public.model_metadata as rows where rows.model_name = active_version.model_name and rows.is_active
$$;

revoke all on function private.active_version(text) from public, anon, authenticated;
grant execute on function private.active_version(text) to service_role;

-- The version of a name that has a part of its users beside the active one, or null.
create function private.canary_version(model_name text)
returns public.model_metadata
language sql
stable
set search_path = ''
as $$
  select * from public.model_metadata as rows
  where rows.model_name = canary_version.model_name and not rows.is_active and rows.traffic_weight > 0
$$;

revoke all on function private.canary_version(text) from public, anon, authenticated;
grant execute on function private.canary_version(text) to service_role;

-- Sends a name's users to these two of its versions, and to no other: the others lose theirs first, for a name has one
-- active version and one canary at any time. For those who have queued.
create function private.send_users(active_id bigint, canary_id bigint default null, weight double precision default 0)
returns void
language sql
set search_path = ''
as $$
  update public.model_metadata as rows
  set is_active = false, traffic_weight = 0
  from public.model_metadata as active
  where active.id = active_id and rows.model_name = active.model_name
    and (rows.is_active or rows.traffic_weight > 0)
    and rows.id <> active_id and rows.id is distinct from canary_id;

  update public.model_metadata set traffic_weight = 1 - weight, is_active = true where id = active_id;
  update public.model_metadata set traffic_weight = weight where id = canary_id
$$;

revoke all on function private.send_users(bigint, bigint, double precision) from public, anon, authenticated;
grant execute on function private.send_users(bigint, bigint, double precision) to service_role;

-- Gives a version users: all of its name's where `weight` is null or 1, else this part, as the canary beside the active
-- one. `compared_with` and `compared_canary` are the versions the caller saw with users (null: none), and count where
-- `check_compared` says so. One of
--   {"outcome": "activated" | "canary", "active", "canary", "weight", "previous"}    done; `previous` was active before
--   {"outcome": "already", "active", "canary", "weight"}    it is so
--   {"outcome": "conflict", "active", "canary"}             somebody was faster: these are served now
--   {"outcome": "no_active", "active", "canary"}            no other version is active and asked that users could stay
--                                                           with
--   {"outcome": "not_ready", "status"}
--   {"outcome": "not_served"}                               it has no provider and provider_model to ask it at
--   {"outcome": "unknown"}
create function public.activate_model(
  model_name text,
  version text,
  weight double precision default null,
  compared_with text default null,
  check_compared boolean default false,
  compared_canary text default null,
  actor text default null,
  reason text default null,
  numbers jsonb default null
)
returns jsonb
language plpgsql
set search_path = ''
as $$
declare
  share constant double precision := coalesce(weight, 1);
  model public.model_metadata;
  active public.model_metadata;
  canary public.model_metadata;
  told jsonb;
begin
  if not (share > 0 and share <= 1) then
    raise invalid_parameter_value using message = 'weight: above 0, and 1 at most';
  end if;

  perform private.queue_as_model(activate_model.model_name);

  select * into model from public.model_metadata as rows
  where rows.model_name = activate_model.model_name and rows.version = activate_model.version;
  if not found then
    return jsonb_build_object('outcome', 'unknown');
  end if;
  if model.status <> 'ready' then
    return jsonb_build_object('outcome', 'not_ready', 'status', model.status);
  end if;
  if model.provider is null or model.provider_model is null then
    return jsonb_build_object('outcome', 'not_served');
  end if;

  active := private.active_version(activate_model.model_name);
  canary := private.canary_version(activate_model.model_name);
  told := jsonb_build_object('active', active.version, 'canary', canary.version);

  if (share = 1 and active.id = model.id and canary.id is null)
    or (share < 1 and canary.id = model.id and canary.traffic_weight = share) then
    return told || jsonb_build_object('outcome', 'already', 'weight', share);
  end if;

  if check_compared and (active.version, canary.version) is distinct from (compared_with, compared_canary) then
    return told || jsonb_build_object('outcome', 'conflict');
  end if;

  if share < 1 and (active.id is null or active.id = model.id or active.provider is null
    or active.provider_model is null) then
    return told || jsonb_build_object('outcome', 'no_active');
  end if;

  if share = 1 then
    perform private.send_users(model.id);
  else
    perform private.send_users(active.id, model.id, share);
  end if;

  perform private.note_model(
    model.model_name,
    model.version,
    case when share < 1 then 'canary' when canary.id = model.id then 'promoted' else 'activated' end,
    activate_model.actor,
    activate_model.reason,
    activate_model.numbers,
    share,
    active.version
  );
  return jsonb_build_object(
    'outcome', case when share < 1 then 'canary' else 'activated' end,
    'active', case when share < 1 then active.version else model.version end,
    'canary', case when share < 1 then model.version end,
    'weight', share,
    'previous', active.version
  );
end
$$;

revoke all on function public.activate_model(
  text, text, double precision, text, boolean, text, text, text, jsonb
) from public, anon, authenticated;
grant execute on function public.activate_model(
  text, text, double precision, text, boolean, text, text, text, jsonb
) to service_role;

-- The versions of a name that were active, as a stack: who was activated stands on who was active before, and a
-- rollback takes off all that stood on the version it went back to, so that the next one goes further back. Where
-- somebody changed the rows by hand, the version that the history then finds active is put on top.
create function private.list_activations(model_name text)
returns text[]
language plpgsql
stable
set search_path = ''
as $$
declare
  stack text[] := '{}';
  place integer;
  step public.model_history;
begin
  for step in
    select * from public.model_history as past
    where past.model_name = list_activations.model_name
      and past.action in ('activated', 'canary', 'promoted', 'rolled_back')
    order by past.id
  loop
    if step.action = 'rolled_back' then
      select max(number) into place from generate_subscripts(stack, 1) as places (number)
      where stack[number] = step.previous_version;
      stack := stack[:place];  -- as it is where there is no place
    end if;

    if step.previous_version is distinct from stack[cardinality(stack)] and step.previous_version is not null then
      stack := stack || step.previous_version;
    end if;

    if step.action in ('activated', 'promoted') and step.version is distinct from stack[cardinality(stack)] then
      stack := stack || step.version;
    end if;
  end loop;
  return stack;
end
$$;

revoke all on function private.list_activations(text) from public, anon, authenticated;
grant execute on function private.list_activations(text) to service_role;

-- Takes back the version that came last: the canary, whose users go to the active one, or, without one, the active
-- version, whose users go to the one that was active before it; of those that are ready yet. With `canary_only` nothing
-- but a canary. `compared_with` is the version that the caller means; null: whichever it is. One of
--   {"outcome": "rolled_back", "active", "previous", "was_canary"}    `previous` is the version taken back
--   {"outcome": "conflict", "active", "canary"}                       it would be another one
--   {"outcome": "nothing", "active"}
create function public.roll_back_model(
  model_name text,
  actor text default null,
  reason text default null,
  numbers jsonb default null,
  canary_only boolean default false,
  compared_with text default null
)
returns jsonb
language plpgsql
set search_path = ''
as $$
declare
  active public.model_metadata;
  canary public.model_metadata;
  target public.model_metadata;
  taken_back text;
  stack text[];
begin
  perform private.queue_as_model(roll_back_model.model_name);
  active := private.active_version(roll_back_model.model_name);
  canary := private.canary_version(roll_back_model.model_name);
  taken_back := coalesce(canary.version, active.version);

  if active.id is null or (canary_only and canary.id is null) then
    return jsonb_build_object('outcome', 'nothing', 'active', active.version);
  end if;

  if compared_with <> taken_back then
    return jsonb_build_object('outcome', 'conflict', 'active', active.version, 'canary', canary.version);
  end if;

  if canary.id is not null then
    target := active;
  else
    stack := private.list_activations(roll_back_model.model_name);

    select rows.* into target
    from generate_subscripts(stack, 1) as places (number)
    join public.model_metadata as rows
      on rows.model_name = roll_back_model.model_name and rows.version = stack[number]
    where rows.status = 'ready' and rows.id <> active.id
    order by number desc
    limit 1;

    if not found then
      return jsonb_build_object('outcome', 'nothing', 'active', active.version);
    end if;
  end if;

  perform private.send_users(target.id);
  perform private.note_model(
    roll_back_model.model_name, taken_back, 'rolled_back', roll_back_model.actor, roll_back_model.reason,
    roll_back_model.numbers, 0, target.version
  );
  return jsonb_build_object(
    'outcome', 'rolled_back', 'active', target.version, 'previous', taken_back, 'was_canary', canary.id is not null
  );
end
$$;

revoke all on function public.roll_back_model(text, text, text, jsonb, boolean, text)
from public, anon, authenticated;
grant execute on function public.roll_back_model(text, text, text, jsonb, boolean, text) to service_role;

-- Takes a version out of the registry; its name is never given again. One of
--   {"outcome": "deleted", "storage_path", "files"}    what is in storage is the caller's to delete
--   {"outcome": "served"}                              it has users
--   {"outcome": "unknown"}
create function public.delete_model(model_name text, version text, actor text default null, reason text default null)
returns jsonb
language plpgsql
set search_path = ''
as $$
declare
  model public.model_metadata;
begin
  perform private.queue_as_model(delete_model.model_name);

  select * into model from public.model_metadata as rows
  where rows.model_name = delete_model.model_name and rows.version = delete_model.version
  for update;
  if not found then
    return jsonb_build_object('outcome', 'unknown');
  end if;
  if model.is_active or model.traffic_weight > 0 then
    return jsonb_build_object('outcome', 'served');
  end if;

  delete from public.model_metadata as rows where rows.id = model.id;
  perform private.note_model(
    model.model_name, model.version, 'deleted', delete_model.actor, delete_model.reason
  );
  return jsonb_build_object('outcome', 'deleted', 'storage_path', model.storage_path, 'files', model.files);
end
$$;

revoke all on function public.delete_model(text, text, text, text) from public, anon, authenticated;
grant execute on function public.delete_model(text, text, text, text) to service_role;

-- Writes down what was decided of a version where nothing changes by it, a canary that is kept or an evaluation's
-- result: {"outcome": "recorded", "id"}, or {"outcome": "unknown"}. What the registry does itself nobody else can say,
-- for rollbacks go by it.
create function public.record_decision(
  model_name text,
  version text,
  action text,
  actor text default null,
  reason text default null,
  numbers jsonb default null
)
returns jsonb
language plpgsql
set search_path = ''
as $$
begin
  if action in (
    'registered', 'ready', 'failed', 'activated', 'canary', 'promoted', 'rolled_back', 'deleted'
  ) then
    raise invalid_parameter_value using message = format('%s is no decision but a change', action);
  end if;

  if not exists (
    select from public.model_metadata as rows
    where rows.model_name = record_decision.model_name and rows.version = record_decision.version
  ) then
    return jsonb_build_object('outcome', 'unknown');
  end if;

  return jsonb_build_object(
    'outcome', 'recorded',
    'id', private.note_model(
      record_decision.model_name, record_decision.version, action, record_decision.actor, record_decision.reason,
      record_decision.numbers
    )
  );
end
$$;

revoke all on function public.record_decision(text, text, text, text, text, jsonb) from public, anon, authenticated;
grant execute on function public.record_decision(text, text, text, text, text, jsonb) to service_role;
