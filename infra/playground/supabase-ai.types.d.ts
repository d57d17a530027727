/** What goes into `supabase-ai.js` and comes out of it; browsers never load this file. */

import type { SupabaseClient } from "@supabase/supabase-js";

/** Signed in or not, or with the app's own tokens (`accessToken`). */
export type Supabase = SupabaseClient<any, any, any>;

/** A passage that an answer was given from, the best first. */
export interface Source {
  id: number;
  content: string;
  similarity: number;
  tokenSymbol: string | null;
}

/** An address or a link of the answer that stands in nothing the model was told: show a warning beside it. */
export interface Flag {
  kind: string;
  text: string;
}

export interface Usage {
  inputTokens: number;
  cachedTokens: number;
  outputTokens: number;
  reasoningTokens: number;
  costUsd: number;
  /** Nobody counted the tokens, or knows their price. */
  estimated: boolean;
}

export interface Ids {
  conversationId: number;
  threadId: string;
}

export interface Answer extends Ids {
  response: string;
  sources: Source[];
  flags: Flag[];
  /** Null where no model was asked. */
  model: string | null;
  usage: Usage;
}

export interface Conversation {
  id: number;
  message: string;
  response: string;
  status: "pending" | "complete" | "partial" | "failed";
  flags: Flag[];
  feedback: 1 | 0 | -1 | null;
  model: string | null;
  createdAt: string;
}

export interface WholeConversation extends Conversation {
  threadId: string;
  sources: Source[];
  usage: Usage;
  /** Why there is no answer, or no more of it. */
  errorCode: string | null;
}

export interface Thread {
  threadId: string;
  /** Its first question. */
  title: string;
  conversationCount: number;
  lastConversationId: number;
  createdAt: string;
  lastMessageAt: string;
}

/** A row of the table `conversations`, as Realtime tells it. */
export interface Row {
  id: number;
  user_id: number;
  thread_id: string;
  message: string;
  response: string;
  status: Conversation["status"];
  flags: Flag[];
  feedback: 1 | 0 | -1 | null;
  model_version: string | null;
  error_code: string | null;
  created_at: string;
}

export interface Options {
  /** `https://…/functions/v1`, where the function isn't at the project's own. */
  functionsUrl?: string;
  /** Instead of `ai-finance`. */
  functionName?: string;
  /** Ends the call, whatever it waits for. */
  signal?: AbortSignal;
  /** How long a connection may be silent before it counts as lost; 35 seconds. */
  stallMs?: number;
}

/** `before` is the `next` of the page before. */
export interface Page extends Options {
  limit?: number;
  before?: number;
}

export interface Asking extends Options {
  /** The thread that the question continues. */
  threadId?: string;
  /** One of the models that may be asked for: it is asked first. */
  model?: string;
  /** The next piece of the answer, and all that was said with it. */
  onToken?: (token: string, text: string) => void;
  /** What the answer is given from, before it begins, and the conversation it will be. */
  onSources?: (sources: Source[], ids: Ids) => void;
  /** The stream broke off, or there is none: the answer is found again, and its text comes from its start. */
  onRestart?: () => void;
  /** One question's own; the page that keeps it finds the same answer after a reload. */
  idempotencyKey?: string;
  /** For everything; two minutes. */
  timeoutMs?: number;
  /** More of the request's body, as `{ matchCount: 5 }`. */
  fields?: object;
}

/** A request on its way. */
export interface Call extends Asking {
  supabase: Supabase;
  body?: object;
  headers?: object;
}

/** A request, and what `take` makes of its answer; `beat` says that the connection lives. */
export type Request = (
  call: Call,
  path?: string,
  take?: (response: Response, beat: () => void) => Promise<any>,
) => Promise<any>;

/** Hears of conversations, and what becomes of its channel; gives what leaves it. */
export type Watch = (
  supabase: Supabase,
  filter: string,
  onRow: (change: any) => void,
  onStatus: (status: string) => void,
) => () => void;

/** Resolves with `done`, and rejects when the call is aborted. */
export type Pause = (call: { signal?: AbortSignal }, begin?: (done: (value?: any) => void) => void) => Promise<any>;

/** The answer to a message. */
export type CallSupabaseAI = (supabase: Supabase, message: string, options?: Asking) => Promise<Answer>;

/**
 * `userId` is that of the table `users`. What comes while there is no connection is not told: load the thread when
 * `onStatus` hears SUBSCRIBED again.
 */
export type SubscribeToAnswers = (
  supabase: Supabase,
  userId: number | string,
  callback: (row: Row) => void,
  options?: { onStatus?: (status: string) => void },
) => () => void;

/** The user's thumb on an answer. */
export type SendFeedback = (
  supabase: Supabase,
  conversationId: number,
  feedback: 1 | 0 | -1,
  options?: Options,
) => Promise<{ conversationId: number; feedback: number }>;

/** The latest first. */
export type ListThreads = (supabase: Supabase, page?: Page) => Promise<{ threads: Thread[]; next: number | null }>;

/** Its conversations, the latest first. */
export type LoadThread = (
  supabase: Supabase,
  threadId: string,
  page?: Page,
) => Promise<{ threadId: string; conversations: Conversation[]; next: number | null }>;

/** With its sources. */
export type LoadConversation = (
  supabase: Supabase,
  conversationId: number,
  options?: Options,
) => Promise<WholeConversation>;
