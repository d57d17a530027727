-- The two calls of a turn: open_turn as the caller before the model is asked, close_turn as the gateway after.

-- Reserves the caller's next conversation: one of
--   {"outcome": "open", "conversation_id", "thread_id", "user_id", "attempt"}   go and ask the model
--   {"outcome": "answered", "conversation_id"}                      the key's answer is already there
--   {"outcome": "running", "conversation_id", "thread_id", "is_pending", "retry_after_seconds"}
--                                                                   the key's first request is still at work
--   {"outcome": "mismatch"}                                         the key was used for another message
--   {"outcome": "limited", "retry_after_seconds", "limits"}         too many turns in the last minute
--   {"outcome": "exhausted", "kind", "retry_after_seconds", "limits"}  the plan's tokens or money are used up
-- `tokens` and `usd` are the most the answer can cost; `limits` says what is left of the caller's plan. Security
-- definer, because a caller who could write open_turns, attempts and model_calls could erase his reservations and
-- the limits. What a caller may say of limits is bounded, for open_turn can be called past the gateway.
create function private.reserve_turn(
  caller_id bigint,
  question text,
  thread uuid,
  request_key text,
  lease_seconds integer,
  turns_per_minute integer,
  tokens bigint,
  usd numeric
)
returns jsonb
language plpgsql
security definer
set search_path = ''
as $$
declare
  question_hash constant text := encode(sha256(convert_to(question, 'UTF8')), 'hex');
  earlier public.conversations;
  running public.open_turns;
  lease constant integer := least(greatest(lease_seconds, 0), 900);  -- no function runs longer
  most constant integer := coalesce(
    (private.plan_of(caller_id)).requests_per_minute, least(coalesce(turns_per_minute, 20), 1000)
  );
  recent_count bigint;
  frees_at timestamptz;
  requests jsonb;
  refusal jsonb;
  reserved_id bigint;
  reserved_thread uuid := coalesce(thread, gen_random_uuid());
  reserved_attempt uuid;
begin
  if caller_id is distinct from private.current_user_id() then
    raise insufficient_privilege using message = 'a turn can be opened for the caller only';
  end if;

  perform private.queue_as_user(caller_id);

  delete from public.open_turns
  where user_id = caller_id and expires_at < now() - interval '1 day';

  update public.conversations
  set status = 'failed', error_code = 'lost'
  where conversations.user_id = caller_id and conversations.status = 'pending'
    and not exists (
      select from public.open_turns
      where open_turns.conversation_id = conversations.id and open_turns.expires_at > now()
    );

  request_key := left(request_key, 255);
  if request_key is not null then
    select * into earlier from public.conversations
    where user_id = caller_id and idempotency_key = request_key;

    select * into running from public.open_turns
    where user_id = caller_id and idempotency_key = request_key;

    if (earlier.id is not null and earlier.message <> question)
      or (running.conversation_id is not null and running.message_hash <> question_hash) then
      return jsonb_build_object('outcome', 'mismatch');
    end if;

    if earlier.status = 'complete' then
      return jsonb_build_object('outcome', 'answered', 'conversation_id', earlier.id);
    end if;

    if running.expires_at > now() then
      return jsonb_build_object(
        'outcome', 'running', 'conversation_id', running.conversation_id, 'thread_id', running.thread_id,
        'is_pending', coalesce(earlier.status = 'pending', false), 'retry_after_seconds', 1
      );
    end if;

    reserved_id := coalesce(earlier.id, running.conversation_id);
    reserved_thread := coalesce(earlier.thread_id, running.thread_id, reserved_thread);
  end if;

  delete from private.attempts
  where user_id = caller_id and attempted_at < now() - interval '1 minute';

  -- One more has room when the one before the last `most` is over.
  select
    count(*),
    coalesce((array_agg(attempted_at order by attempted_at desc))[most], min(attempted_at), now()) + interval '1 minute'
  into recent_count, frees_at
  from private.attempts
  where user_id = caller_id;

  requests := private.describe_limit(most, recent_count + 1, frees_at);

  if recent_count >= most then
    return jsonb_build_object(
      'outcome', 'limited',
      'retry_after_seconds', requests -> 'reset_seconds',
      'limits', private.describe_budgets(caller_id) || jsonb_build_object('requests', requests)
    );
  end if;

  reserved_id := coalesce(reserved_id, nextval(pg_get_serial_sequence('public.conversations', 'id')));
  reserved_attempt := gen_random_uuid();

  refusal := private.reserve_spending(
    reserved_attempt, caller_id, 'ai-finance', reserved_id, reserve_turn.tokens, reserve_turn.usd, lease
  );

  if refusal is not null then
    return refusal || jsonb_build_object(
      'limits', refusal -> 'limits'
        || jsonb_build_object('requests', private.describe_limit(most, recent_count, frees_at))
    );
  end if;

  insert into private.attempts (user_id) values (caller_id);

  insert into public.open_turns
    (conversation_id, user_id, thread_id, idempotency_key, message_hash, attempt, expires_at)
  values (
    reserved_id, caller_id, reserved_thread, request_key, question_hash, reserved_attempt,
    now() + make_interval(secs => lease)
  )
  on conflict (conversation_id) do update
  set attempt = excluded.attempt, expires_at = excluded.expires_at, claimed_until = null, claims = 0;

  return jsonb_build_object(
    'outcome', 'open', 'conversation_id', reserved_id, 'thread_id', reserved_thread, 'user_id', caller_id,
    'attempt', reserved_attempt,
    'limits', private.describe_budgets(caller_id) || jsonb_build_object('requests', requests)
  );
end
$$;

revoke all on function private.reserve_turn(bigint, text, uuid, text, integer, integer, bigint, numeric)
from public, anon;
grant execute on function private.reserve_turn(bigint, text, uuid, text, integer, integer, bigint, numeric)
to authenticated;

-- One conversation as the API tells it, its passages joined again.
create function private.describe_conversation(conversation public.conversations)
returns jsonb
language sql
stable
set search_path = ''
as $$
  select jsonb_build_object(
    'conversation_id', conversation.id,
    'thread_id', conversation.thread_id,
    'message', conversation.message,
    'response', conversation.response,
    'status', conversation.status,
    'model', conversation.model_version,
    'feedback', conversation.feedback,
    'flags', conversation.flags,
    'error_code', conversation.error_code,
    'input_tokens', conversation.input_tokens,
    'cached_tokens', conversation.cached_tokens,
    'output_tokens', conversation.output_tokens,
    'reasoning_tokens', conversation.reasoning_tokens,
    'is_estimated', conversation.is_estimated,
    'cost_usd', conversation.cost_usd,
    'created_at', conversation.created_at,
    'sources', coalesce(
      (
        select jsonb_agg(
          jsonb_build_object(
            'id', knowledge.id,
            'content', knowledge.content,
            'similarity', (used.passage ->> 'similarity')::double precision,
            'token_symbol', knowledge.token_symbol
          )
          order by used.rank
        )
        from jsonb_array_elements(conversation.context_used) with ordinality as used (passage, rank)
        -- By its text where the row is gone: another embedding model's has it.
        cross join lateral (
          select found.id, found.content, found.token_symbol
          from public.finance_knowledge as found
          where found.id = (used.passage ->> 'id')::bigint or found.content_hash = used.passage ->> 'content_hash'
          order by found.id = (used.passage ->> 'id')::bigint desc, found.id
          limit 1
        ) as knowledge
      ),
      '[]'
    )
  )
$$;

revoke all on function private.describe_conversation(public.conversations) from public, anon;
grant execute on function private.describe_conversation(public.conversations) to authenticated;

-- Opens a turn as the caller and returns all the prompt needs of him in one round trip: the outcome of
-- private.reserve_turn and, when it is open, `turns` (the thread's last, oldest first) and `swaps` (the
-- newest first); when it is answered, `conversation`. A caller without a users row, or one who says he is
-- another user, gets {"outcome": "unknown_user"} or {"outcome": "forbidden"}.
create function public.open_turn(
  question text,
  thread uuid default null,
  claimed_user_id bigint default null,
  request_key text default null,
  turn_count integer default 4,
  swap_count integer default 10,
  lease_seconds integer default 60,
  turns_per_minute integer default 20,
  tokens bigint default 0,
  usd numeric default 0
)
returns jsonb
language plpgsql
set search_path = ''
as $$
declare
  caller_id constant bigint := private.current_user_id();
  turn jsonb;
begin
  if caller_id is null then
    return jsonb_build_object('outcome', 'unknown_user');
  end if;

  if claimed_user_id <> caller_id then
    return jsonb_build_object('outcome', 'forbidden');
  end if;

  turn := private.reserve_turn(
    caller_id, question, thread, request_key, lease_seconds, turns_per_minute, tokens, usd
  );

  if turn ->> 'outcome' = 'answered' then
    return turn || jsonb_build_object('conversation', (
      select private.describe_conversation(conversation)
      from public.conversations as conversation
      where conversation.id = (turn ->> 'conversation_id')::bigint
    ));
  end if;

  if turn ->> 'outcome' <> 'open' then
    return turn;
  end if;

  return turn || jsonb_build_object(
    'turns', coalesce(
      (
        select jsonb_agg(
          jsonb_build_object('message', recent.message, 'response', recent.response) order by recent.id
        )
        from (
          select conversations.id, conversations.message, conversations.response
          from public.conversations
          where conversations.user_id = caller_id
            and conversations.thread_id = (turn ->> 'thread_id')::uuid
            and conversations.status = 'complete'
          order by conversations.id desc
          limit least(greatest(turn_count, 0), 100)
        ) as recent
      ),
      '[]'
    ),
    'swaps', coalesce(
      (
        select jsonb_agg(to_jsonb(recent) order by recent.created_at desc)
        from (
          select swap.from_token, swap.to_token, swap.amount, swap.created_at
          from public.swap_history as swap
          where swap.user_id = caller_id
          order by swap.created_at desc
          limit least(greatest(swap_count, 0), 100)
        ) as recent
      ),
      '[]'
    )
  );
end
$$;

revoke all on function public.open_turn(
  text, uuid, bigint, text, integer, integer, integer, integer, bigint, numeric
) from public, anon;
grant execute on function public.open_turn(
  text, uuid, bigint, text, integer, integer, integer, integer, bigint, numeric
) to authenticated;

-- Writes a turn's conversation, charges the attempt and lets its hold go. Callable again with the same id: an answer
-- that is complete stays as it is, one in part gives way to no failure, an attempt is charged once, and a newer one
-- keeps its hold and, until it is over, the conversation from everything but a complete answer. A user who is gone has
-- no conversation, but his call is in the ledger. For the gateway alone (the secret key): row level security can't
-- tell the gateway that writes an answer from a user who forges one.
create function public.close_turn(
  conversation_id bigint,
  user_id bigint,
  thread_id uuid,
  attempt uuid,
  message text,
  response text,
  status text,
  idempotency_key text default null,
  context_used jsonb default '[]',
  model_version text default null,
  error_code text default null,
  input_tokens integer default null,
  output_tokens integer default null,
  flags jsonb default '[]',
  cached_tokens integer default null,
  reasoning_tokens integer default null,
  is_estimated boolean default null,
  cost_usd numeric default null,
  latency_ms integer default null,
  routed_version text default null
)
returns void
language sql
set search_path = ''
as $$
  select private.settle_call(
    close_turn.attempt, close_turn.user_id, 'ai-finance', close_turn.conversation_id, close_turn.status,
    close_turn.error_code, close_turn.model_version, close_turn.input_tokens, close_turn.cached_tokens,
    close_turn.output_tokens, close_turn.reasoning_tokens, close_turn.is_estimated, close_turn.cost_usd,
    close_turn.latency_ms, close_turn.routed_version
  );

  delete from public.open_turns
  where open_turns.conversation_id = close_turn.conversation_id and open_turns.attempt = close_turn.attempt;

  insert into public.conversations (
    id, user_id, thread_id, idempotency_key, message, response, status, context_used, model_version,
    error_code, input_tokens, cached_tokens, output_tokens, reasoning_tokens, is_estimated, cost_usd, flags
  )
  select
    close_turn.conversation_id, close_turn.user_id, close_turn.thread_id, close_turn.idempotency_key,
    close_turn.message, close_turn.response, close_turn.status, close_turn.context_used,
    close_turn.model_version, close_turn.error_code, close_turn.input_tokens, close_turn.cached_tokens,
    close_turn.output_tokens, close_turn.reasoning_tokens, close_turn.is_estimated, close_turn.cost_usd,
    close_turn.flags
  where private.user_id_of(close_turn.user_id, null) is not null
  on conflict (id) do update
  set
    response = excluded.response,
    status = excluded.status,
    context_used = excluded.context_used,
    model_version = excluded.model_version,
    error_code = excluded.error_code,
    input_tokens = excluded.input_tokens,
    cached_tokens = excluded.cached_tokens,
    output_tokens = excluded.output_tokens,
    reasoning_tokens = excluded.reasoning_tokens,
    is_estimated = excluded.is_estimated,
    cost_usd = excluded.cost_usd,
    flags = excluded.flags
  where conversations.status <> 'complete' and (
    excluded.status = 'complete'
    or not (excluded.status = 'failed' and conversations.status = 'partial')
    and not exists (select from public.open_turns where open_turns.conversation_id = conversations.id)
  )
$$;

revoke all on function public.close_turn(
  bigint, bigint, uuid, uuid, text, text, text, text, jsonb, text, text, integer, integer, jsonb, integer, integer,
  boolean, numeric, integer, text
) from public, anon, authenticated;
grant execute on function public.close_turn(
  bigint, bigint, uuid, uuid, text, text, text, text, jsonb, text, text, integer, integer, jsonb, integer, integer,
  boolean, numeric, integer, text
) to service_role;

-- Leaves an open turn to a worker: the conversation is there from now on, as pending. Nothing happens to a turn that
-- the attempt doesn't hold any more. For the gateway alone, as close_turn is.
create function public.defer_turn(
  conversation_id bigint,
  user_id bigint,
  thread_id uuid,
  attempt uuid,
  message text,
  idempotency_key text default null,
  lease_seconds integer default 900
)
returns void
language sql
set search_path = ''
as $$
  select private.queue_as_user(defer_turn.user_id);

  update public.open_turns
  set expires_at = now() + make_interval(secs => lease_seconds), claimed_until = null, claims = 0
  where open_turns.conversation_id = defer_turn.conversation_id and open_turns.attempt = defer_turn.attempt;

  update public.model_calls
  set expires_at = now() + make_interval(secs => lease_seconds)
  where id = defer_turn.attempt and state = 'reserved';

  insert into public.conversations (id, user_id, thread_id, idempotency_key, message, response, status)
  select
    defer_turn.conversation_id, defer_turn.user_id, defer_turn.thread_id, defer_turn.idempotency_key,
    defer_turn.message, '', 'pending'
  from public.open_turns
  where open_turns.conversation_id = defer_turn.conversation_id and open_turns.attempt = defer_turn.attempt
  on conflict (id) do update
  set status = 'pending', response = '', error_code = null
  where conversations.status <> 'complete'
$$;

revoke all on function public.defer_turn(bigint, bigint, uuid, uuid, text, text, integer)
from public, anon, authenticated;
grant execute on function public.defer_turn(bigint, bigint, uuid, uuid, text, text, integer) to service_role;

-- Whether a worker may answer a deferred turn now: one of
--   {"outcome": "claimed", "claims"}   and the how-manieth time that is
--   {"outcome": "busy"}                another one does
--   {"outcome": "over"}                it is answered, given up, or opened anew
-- A claim that is let go is one of no seconds. What is claimed stays reserved.
create function public.claim_turn(conversation_id bigint, attempt uuid, claim_seconds integer)
returns jsonb
language plpgsql
set search_path = ''
as $$
declare
  held public.open_turns;
begin
  perform private.queue_as_user(open_turns.user_id) from public.open_turns
  where open_turns.conversation_id = claim_turn.conversation_id;

  select * into held from public.open_turns
  where open_turns.conversation_id = claim_turn.conversation_id and open_turns.attempt = claim_turn.attempt
    and not exists (
      select from public.conversations
      where conversations.id = open_turns.conversation_id and conversations.status = 'complete'
    );

  if not found then
    return jsonb_build_object('outcome', 'over');
  end if;

  if held.claimed_until > now() and claim_seconds > 0 then
    return jsonb_build_object('outcome', 'busy');
  end if;

  update public.open_turns
  set
    claimed_until = now() + make_interval(secs => claim_seconds),
    claims = claims + case when claim_seconds > 0 then 1 else 0 end,
    expires_at = greatest(expires_at, now() + make_interval(secs => claim_seconds))
  where open_turns.conversation_id = held.conversation_id;

  update public.model_calls
  set expires_at = greatest(expires_at, now() + make_interval(secs => claim_seconds))
  where id = held.attempt and state = 'reserved';
  return jsonb_build_object('outcome', 'claimed', 'claims', held.claims + 1);
end
$$;

revoke all on function public.claim_turn(bigint, uuid, integer) from public, anon, authenticated;
grant execute on function public.claim_turn(bigint, uuid, integer) to service_role;

-- One of the caller's conversations with its sources, as describe_conversation tells it; null for anybody else's. A
-- pending one that nobody answers any more is told as failed.
create function public.read_conversation(conversation_id bigint)
returns jsonb
language sql
stable
set search_path = ''
as $$
  select private.describe_conversation(conversation) || case
    when conversation.status = 'pending' and not exists (
      select from public.open_turns
      where open_turns.conversation_id = conversation.id and open_turns.expires_at > now()
    ) then jsonb_build_object('status', 'failed', 'error_code', 'lost')
    else '{}'
  end
  from public.conversations as conversation
  where conversation.id = read_conversation.conversation_id
$$;

revoke all on function public.read_conversation(bigint) from public, anon;
grant execute on function public.read_conversation(bigint) to authenticated;
