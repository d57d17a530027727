// The knowledge base, for the project's owner: its documents, and what a question finds in it and why.
import { call } from '../api.js'
import { badge, button, confirm, emptyState, field, heading, loaded, table, toast } from '../components.js'
import { addDocuments } from '../document-upload.js'
import { h } from '../dom.js'
import { ago, amount, count, dateTime, percent } from '../format.js'
import { highlights } from '../highlights.js'

const PAGE = 50
const TYPING_MS = 250
const LISTS = { meaning: 'Meaning', words: 'Words', names: 'Names' }

export async function show(place, { params, signal }) {
  const explains = params[0] === 'why'
  const added = () => place.querySelector('.documents')?.dispatchEvent(new Event('changed'))
  const add = button({ label: 'Add documents', symbol: 'plus', kind: 'primary', onclick: () => addDocuments([]).then(added) })
  place.append(
    heading('Knowledge', 'What answers are given from. A change counts from the next question on.', add),
    h('nav', { class: 'segments', 'aria-label': 'Parts of the knowledge' }, part('Documents', '', !explains), part('What a question finds', '/why', explains)),
  )
  dropped(place, (files) => addDocuments(files).then(added), signal)
  await (explains ? whySection(place, signal) : documentsSection(place, signal))
}

const part = (title, path, isHere) => h('a', { href: `#/knowledge${path}`, 'aria-current': isHere ? 'page' : false }, title)

/** A signal for each of several loads, aborted when the next begins, or with `signal`: a late answer draws nothing. */
function latest(signal) {
  let last = new AbortController()
  return () => {
    last.abort()
    last = new AbortController()
    return AbortSignal.any([signal, last.signal])
  }
}

/** Files that are dropped anywhere on the view. */
function dropped(place, take, signal) {
  place.addEventListener('dragover', (event) => event.preventDefault(), { signal })
  place.addEventListener('drop', (event) => {
    event.preventDefault()
    if (event.dataTransfer.files.length) take([...event.dataTransfer.files])
  }, { signal })
}

async function documentsSection(place, signal) {
  const list = h('div', { class: 'documents' })
  const search = field({ label: 'Search documents', type: 'search', placeholder: 'Title, id, token or category', autocomplete: 'off' })
  const fresh = latest(signal)
  const load = () => {
    const words = search.input.value
    const mine = fresh()
    return loaded(list, () => read(words, null, mine), (page) => documents(page, words, load, mine), { lines: 6, signal: mine })
  }
  let typing
  search.input.addEventListener('input', () => { clearTimeout(typing); typing = setTimeout(load, TYPING_MS) })
  list.addEventListener('changed', load, { signal })
  signal.addEventListener('abort', () => clearTimeout(typing))
  place.append(search, list)
  await load()
}

function read(words, after, signal) {
  const query = new URLSearchParams({ limit: PAGE, ...(words.trim() && { containing: words.trim() }), ...(after && { after }) })
  return call('GET', `ai-with-rag/documents?${query}`, { signal })
}

function documents(page, words, load, signal) {
  if (!page.documents.length) return words.trim()
    ? emptyState({ symbol: 'search', title: 'No such document', text: `None has “${words.trim()}” in its title, id, token or category.` })
    : emptyState({ symbol: 'book', title: 'No documents yet', text: 'Add markdown, text or JSON, and answers are given from it.' })
  const rows = [...page.documents]
  const place = h('div', { class: 'stack' })
  const draw = (next) => place.replaceChildren(
    h('div', { class: 'with-actions' }, table({ caption: 'Documents', columns: columns(load), rows })),
    next ? h('div', { class: 'older' }, button({ label: 'Load more', kind: 'ghost', onclick: () => more(next) })) : h('p', { class: 'hint' }, rows.length === 1 ? '1 document' : `${count(rows.length)} documents`),
  )
  async function more(next) {
    try {
      const following = await read(words, next, signal)
      rows.push(...following.documents)
      draw(following.next)
    } catch (error) {
      if (!signal.aborted) toast(error.message, { kind: 'error' })
    }
  }
  draw(page.next)
  return place
}

const columns = (load) => [
  { title: 'Document', cell: ({ id, title }) => h('div', { class: 'named' }, h('strong', {}, title ?? id), title && h('small', {}, id)) },
  { title: 'About', cell: ({ tokenSymbol, category, ownerId }) => h('span', { class: 'badges' }, tokenSymbol && badge(tokenSymbol), category, ownerId && badge(`user ${ownerId} alone`, 'warn')) },
  { title: 'Passages', align: 'end', cell: ({ passages }) => count(passages) },
  { title: 'Changed', cell: ({ updatedAt }) => h('time', { datetime: updatedAt, title: dateTime(updatedAt) }, ago(updatedAt)) },
  { title: h('span', { class: 'hidden' }, 'Delete'), align: 'end', cell: (row) => button({ title: `Delete ${row.title ?? row.id}`, symbol: 'trash', kind: 'ghost small', onclick: () => remove(row, load) }) },
]

async function remove({ id, title }, load) {
  const text = `“${title ?? id}” and its passages go at once, and no answer is given from them any more.`
  if (!await confirm({ title: 'Delete the document?', text, label: 'Delete' })) return
  try {
    await call('DELETE', `ai-with-rag/documents/${id.split('/').map(encodeURIComponent).join('/')}`)
    toast('Deleted')
  } catch (error) {
    toast(error.message, { kind: 'error' })
  }
  await load()
}

async function whySection(place, signal) {
  const question = field({ label: 'Question', name: 'question', placeholder: 'What is slippage?', required: true, maxlength: '4000', autocomplete: 'off' })
  const token = field({ label: 'Token', placeholder: 'any', maxlength: '255', autocomplete: 'off' })
  const results = h('div', { class: 'stack' }, emptyState({ symbol: 'search', title: 'Ask as a user would', text: 'You see the passages that an answer would be given from, and the place of each in the lists that are fused.' }))
  const fresh = latest(signal)
  const ask = async (event) => {
    event.preventDefault()
    const mine = fresh()
    const body = { query: question.input.value, explain: true, matchCount: 10, tokenSymbol: token.input.value.trim() || null }
    await loaded(results, () => call('POST', 'ai-with-rag/search', { body, signal: mine }), (found) => explained(found, body.query), { lines: 8, signal: mine })
  }
  place.append(h('form', { class: 'asking', onsubmit: ask }, question, token, button({ label: 'Find', symbol: 'search', kind: 'primary', type: 'submit' })), results)
}

function explained({ sources, threshold, timings }, query) {
  if (!sources.length) return emptyState({ symbol: 'search', title: 'Nothing is found', text: `No passage is more than ${percent(threshold)} similar, or has nearly all of the question’s words.` })
  const took = Math.round(timings.embed + timings.search)
  return [
    h('p', { class: 'hint', role: 'status' }, `${sources.length === 1 ? '1 passage' : `${sources.length} passages`} in ${took} ms. A passage must be more than ${percent(threshold)} similar, or have nearly all the words or a name of the question. The score is what the three lists add.`),
    h('ul', { class: 'legend', 'aria-hidden': 'true' }, Object.entries(LISTS).map(([list, title]) => h('li', { class: `list-${list}` }, title))),
    h('ol', { class: 'found' }, sources.map((source, at) => passage(source, at + 1, query, threshold))),
  ]
}

const passage = ({ title, content, tokenSymbol, score, similarity, source, ranks }, number, query, threshold) =>
  h(
    'li', { class: 'card' },
    h('div', { class: 'passage-head' }, h('span', { class: 'passage-number', 'aria-hidden': 'true' }, String(number)), h('h2', {}, title ?? tokenSymbol ?? `Passage ${number}`), tokenSymbol && badge(tokenSymbol), h('span', { class: 'score' }, 'score ', h('strong', {}, score.toFixed(3)))),
    h('div', { class: 'shares', role: 'img', 'aria-label': `Of its score ${Object.entries(LISTS).filter(([list]) => ranks[list]).map(([list, name]) => `${name} adds ${ranks[list].share.toFixed(3)}`).join(', ')}` },
      Object.keys(LISTS).filter((list) => ranks[list]).map((list) => h('span', { class: `list-${list}`, style: { width: `${100 * ranks[list].share}%` } }))),
    h('dl', { class: 'ranks' }, Object.entries(LISTS).map(([list, name]) => rank(name, list, ranks[list], similarity))),
    similarity <= threshold && h('p', { class: 'hint' }, `Less than ${percent(threshold)} similar: it is here for its words.`),
    h('p', { class: 'passage-text' }, highlights(content, query, '').map(([words, isMarked]) => (isMarked ? h('mark', {}, words) : words))),
    source && h('p', { class: 'passage-origin' }, source),
  )

function rank(name, list, listed, similarity) {
  const value = list === 'meaning' ? `${percent(similarity)} similar` : list === 'words' && listed && `words’ score ${amount(Math.round(100 * listed.value) / 100)}`
  return h(
    'div', { class: `list-${list}` }, h('dt', {}, name),
    h('dd', {}, h('strong', {}, listed ? `#${listed.rank}` : 'not in it'), value && h('span', {}, value), listed && h('span', {}, `adds ${listed.share.toFixed(3)}`)),
  )
}
