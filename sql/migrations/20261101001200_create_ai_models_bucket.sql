-- Where fine-tuned models are kept, for the secret key alone: the bucket has no policies.

-- Storage makes the table, so it has no migration here; where it is absent there is nothing to keep models in.
do $$
begin
  if to_regclass('storage.buckets') is null then
    return;
  end if;

  insert into storage.buckets (id, name, public) values ('ai-models', 'ai-models', false)
  on conflict (id) do nothing;
end
$$;
