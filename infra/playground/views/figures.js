// What the models cost, how long they took, how often they failed and how they were liked, for the project's owner.
import { call } from '../api.js'
import { card, emptyState, heading, loaded, table } from '../components.js'
import { lineChart } from '../chart.js'
import { h } from '../dom.js'
import { count, milliseconds, percent, usd, utcDay, utcHour } from '../format.js'
import { go } from '../router.js'

const HOUR = 3600
const DAY = 24 * HOUR
const RANGES = {
  '24h': { title: '24 hours', bucket: 'hour', width: HOUR, buckets: 24 },
  '7d': { title: '7 days', bucket: 'day', width: DAY, buckets: 7 },
  '30d': { title: '30 days', bucket: 'day', width: DAY, buckets: 30 },
}
const DRAWN = 5 // lines that can be told apart; the table has every model
const NONE = 'no model'

const CHARTS = [
  { title: 'Cost', of: ({ costUsd }) => costUsd, none: 0, format: usd },
  { title: 'Requests', of: ({ requests }) => requests, none: 0, format: count },
  { title: 'Latency, 95th percentile', of: ({ p95Ms }) => p95Ms, none: null, format: milliseconds },
  { title: 'Latency, median', of: ({ p50Ms }) => p50Ms, none: null, format: milliseconds },
  { title: 'Tokens, read and written', of: ({ inputTokens, outputTokens }) => inputTokens + outputTokens, none: 0, format: count },
  { title: 'Errors', of: ({ errors, requests }) => errors / requests, none: null, format: percent },
  { title: 'Thumbs up, of all thumbs', of: (row) => liked(row), none: null, format: percent },
]
const COLUMNS = [
  { title: 'Model', cell: ({ model }) => h('strong', {}, model ?? NONE) },
  { title: 'Requests', align: 'end', cell: ({ requests }) => count(requests) },
  { title: 'Errors', align: 'end', cell: ({ errors, requests }) => percent(errors / requests) },
  { title: 'Cost', align: 'end', cell: ({ costUsd }) => usd(costUsd) },
  { title: 'p50', align: 'end', cell: ({ p50Ms }) => said(p50Ms, milliseconds) },
  { title: 'p95', align: 'end', cell: ({ p95Ms }) => said(p95Ms, milliseconds) },
  { title: 'Tokens in, out', align: 'end', cell: ({ inputTokens, outputTokens }) => `${count(inputTokens)}, ${count(outputTokens)}` },
  { title: 'Thumbs', align: 'end', cell: ({ likes, dislikes }) => `${count(likes)} up, ${count(dislikes)} down` },
]

export async function show(place, { params: [name = '7d'], signal }) {
  const range = RANGES[name] ?? RANGES['7d']
  const body = h('div', { class: 'stack' })
  place.append(heading('All usage', 'Everybody’s questions, by the model that answered. In UTC; the last bucket still fills.', ranges(range)), body)
  await loaded(body, () => read(range, signal), (usage) => drawn(usage, range, signal), { lines: 8, signal })
}

const ranges = (range) =>
  h('div', { class: 'segments', role: 'group', 'aria-label': 'Span' }, Object.entries(RANGES).map(([name, each]) =>
    h('button', { type: 'button', 'aria-pressed': String(each === range), onclick: () => go(`figures/${name}`) }, each.title)))

function read({ bucket, width, buckets }, signal) {
  const first = startOf(width, buckets)
  return call('GET', `deploy-model/usage?from=${new Date(1000 * first).toISOString()}&bucket=${bucket}`, { signal })
}

/** When the first of so many buckets begins, of which the last is the one that runs. */
const startOf = (width, buckets) => width * (Math.floor(Date.now() / 1000 / width) - buckets + 1)

function drawn(usage, range, signal) {
  const { total, models } = usage
  if (!total.requests) return emptyState({ symbol: 'usage', title: 'Nobody has asked anything', text: `In the last ${range.title} no model was asked. Figures appear with the first question.` })
  const { times, lines } = overTime(usage, range)
  const period = range.bucket === 'hour' ? ['Hour', utcHour] : ['Day', utcDay]
  return [
    h('div', { class: 'tiles' }, tile('Requests', count(total.requests)), tile('Cost', usd(total.costUsd)), tile('Errors', percent(total.errors / total.requests)),
      tile('Median latency', said(total.p50Ms, milliseconds)), tile('95th percentile', said(total.p95Ms, milliseconds)), tile('Thumbs up', said(liked(total), percent))),
    table({ caption: 'Usage by model', columns: COLUMNS, rows: models }),
    h('div', { class: 'charts' }, CHARTS.map(({ title, of, none, format }) => card(null, lineChart({
      title, times, format, period, signal, series: lines.map(({ model, rows }) => ({ label: model ?? NONE, values: rows.map((row) => (row ? of(row) : none)) })),
    })))),
    models.length > DRAWN && h('p', { class: 'hint' }, `The charts show the ${DRAWN} models that cost most; the table has all.`),
  ]
}

/** The buckets' times, and for each model that is drawn its row or undefined in each of them. */
function overTime({ since, models, buckets }, { width, buckets: many }) {
  const first = width * Math.floor(new Date(since) / 1000 / width)
  const times = Array.from({ length: many }, (_, at) => first + at * width)
  const lines = models.slice(0, DRAWN).map(({ model }) => {
    const rows = new Map(buckets.filter((row) => row.model === model).map((row) => [new Date(row.start) / 1000, row]))
    return { model, rows: times.map((time) => rows.get(time)) }
  })
  return { times, lines }
}

const tile = (title, figure) => h('div', { class: 'tile' }, h('span', {}, title), h('strong', {}, figure))

const liked = ({ likes, dislikes }) => (likes + dislikes ? likes / (likes + dislikes) : null)

const said = (figure, format) => (figure === null || figure === undefined ? '–' : format(figure))
