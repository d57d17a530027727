// The user's own swaps, read from the table in his name: row level security shows no others.
import { unwrapped } from '../api.js'
import { button, emptyState, heading, loaded, table } from '../components.js'
import { h } from '../dom.js'
import { amount, dateTime, day } from '../format.js'
import { supabase } from '../session.js'

const PAGE = 50
const COLUMNS = [
  { title: 'When', cell: ({ created_at }) => h('time', { datetime: created_at, title: dateTime(created_at) }, day(created_at)) },
  { title: 'Swap', cell: ({ from_token, to_token }) => h('strong', {}, `${from_token} → ${to_token}`) },
  { title: 'Amount', align: 'end', cell: (swap) => `${amount(swap.amount)} ${swap.from_token}` },
]

export async function show(place, { signal }) {
  const list = h('div', {})
  place.append(heading('Swaps', 'What the assistant knows of your trading: the last ten go with each question.'), list)
  let shown = PAGE
  const draw = (rows) => drawn(rows, shown, () => { shown += PAGE; return load() })
  const load = () => loaded(list, () => newest(shown + 1), draw, { lines: 6, signal })
  await load()
}

const newest = async (most) =>
  unwrapped(await supabase.from('swap_history').select('id, from_token, to_token, amount, created_at').order('created_at', { ascending: false }).limit(most))

function drawn(rows, shown, more) {
  if (rows.length) return [table({ caption: 'Swaps', columns: COLUMNS, rows: rows.slice(0, shown) }), rows.length > shown && h('div', { class: 'older' }, button({ label: 'Load older', kind: 'ghost', onclick: more }))]
  return emptyState({
    symbol: 'swap', title: 'No swaps yet', text: 'When you swap tokens in the app they appear here, and you can ask about them.',
    action: h('a', { class: 'button plain', href: '#/chat' }, 'Ask something'),
  })
}
