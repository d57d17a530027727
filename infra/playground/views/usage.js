// The user's plan, and what is spent of it.
import { call } from '../api.js'
import { card, emptyState, heading, loaded, meter, table } from '../components.js'
import { h } from '../dom.js'
import { count, day, usd } from '../format.js'

const COLUMNS = [
  { title: 'Model', cell: ({ model }) => h('strong', {}, model) },
  { title: 'Questions', align: 'end', cell: ({ requests }) => count(requests) },
  { title: 'Tokens read', align: 'end', cell: ({ inputTokens }) => count(inputTokens) },
  { title: 'Tokens written', align: 'end', cell: ({ outputTokens }) => count(outputTokens) },
  { title: 'Cost', align: 'end', cell: ({ costUsd }) => usd(costUsd) },
]

export async function show(place, { signal }) {
  const body = h('div', { class: 'stack' })
  place.append(heading('Usage', 'What your questions have cost, and what your plan allows. Days and months are UTC.'), body)
  await loaded(body, () => call('GET', 'ai-finance/usage', { signal }), drawn, { lines: 6, signal })
}

const drawn = (usage) => [
  h('div', { class: 'cards' }, spending('Today', usage.day), spending('This month', usage.month)),
  card('By model, this month', usage.models.length
    ? table({ caption: 'Usage by model', columns: COLUMNS, rows: usage.models })
    : emptyState({ symbol: 'usage', title: 'Nothing asked yet', text: 'Models appear here once they have answered you.' })),
  h('p', { class: 'hint' }, usage.plan ? `You are on the plan “${usage.plan}”.` : 'You are on no plan.'),
]

const spending = (title, spent) =>
  card(title,
    h('p', { class: 'big' }, count(spent.requests), h('small', {}, spent.requests === 1 ? ' question' : ' questions', ` since ${day(`${spent.startsOn}T00:00`)}`)),
    meter({ label: 'Tokens', used: spent.tokens, limit: spent.tokensLimit, format: count }),
    meter({ label: 'Cost', used: spent.costUsd, limit: spent.usdLimit, format: usd }),
  )
