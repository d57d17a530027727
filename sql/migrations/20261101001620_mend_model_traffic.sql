-- Traffic: users go to the weights that were evaluated, wherever their provider serves them, and rollbacks forget no
-- activation.

alter table public.model_metadata add column hosting jsonb check (jsonb_typeof(hosting) = 'object');

comment on column public.model_metadata.hosting is
  'What its own endpoint serves: {"repository", "revision", "status", "since"}; another `since` is another state.';

-- Evaluations from before this was written down may be of other weights than an endpoint serves by now.
update public.model_metadata set performance_metrics = performance_metrics - 'evaluation'
where provider in ('huggingface', 'runpod') and performance_metrics ? 'evaluation';

-- Writes down what a version's endpoint serves, unless the version has users, or one who wrote of another state was
-- faster: `compared_since` is the state the caller has seen (null: none). One of
--   {"outcome": "noted"}
--   {"outcome": "served"}        it has users
--   {"outcome": "was_served"}    it had users, a rollback may bring it back, and these would be other weights
--   {"outcome": "conflict"}
--   {"outcome": "unknown"}
create function public.note_hosting(
  model_name text,
  version text,
  hosting jsonb,
  compared_since text default null,
  provider_model text default null
)
returns jsonb
language plpgsql
set search_path = ''
as $$
declare
  model public.model_metadata;
begin
  perform private.queue_as_model(note_hosting.model_name);

  select * into model from public.model_metadata as rows
  where rows.model_name = note_hosting.model_name and rows.version = note_hosting.version
  for update;
  if not found then
    return jsonb_build_object('outcome', 'unknown');
  end if;
  if model.is_active or model.traffic_weight > 0 then
    return jsonb_build_object('outcome', 'served');
  end if;
  if (model.hosting ->> 'since') is distinct from compared_since then
    return jsonb_build_object('outcome', 'conflict');
  end if;
  if (model.hosting ->> 'repository', model.hosting ->> 'revision')
    is distinct from (note_hosting.hosting ->> 'repository', note_hosting.hosting ->> 'revision')
    and model.version = any(private.list_activations(note_hosting.model_name)) then
    return jsonb_build_object('outcome', 'was_served');
  end if;

  update public.model_metadata as rows
  set
    hosting = note_hosting.hosting,
    provider_model = coalesce(note_hosting.provider_model, rows.provider_model)
  where rows.id = model.id;
  return jsonb_build_object('outcome', 'noted');
end
$$;

revoke all on function public.note_hosting(text, text, jsonb, text, text) from public, anon, authenticated;
grant execute on function public.note_hosting(text, text, jsonb, text, text) to service_role;

-- activate_model for a version as it was evaluated: `evaluated` is {"provider", "provider_model", "hosting"} of the row
-- that the caller saw. What activate_model answers, or
--   {"outcome": "changed"}    it is asked elsewhere since, or serves other weights
create function public.activate_evaluated_model(
  model_name text,
  version text,
  evaluated jsonb,
  weight double precision default null,
  compared_with text default null,
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
  model public.model_metadata;
begin
  perform private.queue_as_model(activate_evaluated_model.model_name);

  select * into model from public.model_metadata as rows
  where rows.model_name = activate_evaluated_model.model_name and rows.version = activate_evaluated_model.version
  for update;
  if found and evaluated is distinct from jsonb_build_object(
    'provider', model.provider, 'provider_model', model.provider_model, 'hosting', model.hosting
  ) then
    return jsonb_build_object('outcome', 'changed');
  end if;

  return public.activate_model(
    activate_evaluated_model.model_name, activate_evaluated_model.version, activate_evaluated_model.weight,
    compared_with => activate_evaluated_model.compared_with,
    check_compared => true,
    compared_canary => activate_evaluated_model.compared_canary,
    actor => activate_evaluated_model.actor,
    reason => activate_evaluated_model.reason,
    numbers => activate_evaluated_model.numbers
  );
end
$$;

revoke all on function public.activate_evaluated_model(
  text, text, jsonb, double precision, text, text, text, text, jsonb
) from public, anon, authenticated;
grant execute on function public.activate_evaluated_model(
  text, text, jsonb, double precision, text, text, text, text, jsonb
) to service_role;

-- The versions of a name that were active, as a stack: who was activated stands on who was active before, and a
-- rollback takes off all that stood on the version it went back to, so that the next one goes further back; one to a
-- version that isn't in it takes off nothing. Where somebody changed the rows by hand, the version that the history
-- then finds active is put on top.
create or replace function private.list_activations(model_name text)
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
      stack := stack[:coalesce(place, cardinality(stack))];
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
