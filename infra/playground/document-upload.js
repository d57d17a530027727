// Documents on their way into the knowledge: pasted, or files that are chosen or dropped; what becomes of each.
import { call } from './api.js'
import { badge, button, choice, dialog, errorState, field } from './components.js'
import { h, icon } from './dom.js'
import { bytes } from './format.js'

const BATCH = 100
const BATCH_BYTES = 4_500_000 // a body has 5 MB, and its quotes take some
const FORMATS = { md: 'markdown', markdown: 'markdown', txt: 'text', json: 'json' }
const KINDS = { created: 'good', updated: 'good', unchanged: 'plain', failed: 'bad' }

/** A dialog that puts documents, with `files` in it already; resolves when it is closed. */
export const addDocuments = (files) =>
  dialog({
    title: 'Add documents',
    body: (close) => {
      const body = h('div', { class: 'stack' })
      body.append(form(files, (documents) => send(body, documents, close)))
      return body
    },
  })

function form(given, send) {
  const files = [...given]
  const chosen = h('ul', { class: 'files', 'aria-live': 'polite' })
  const input = h('input', { type: 'file', class: 'hidden', multiple: true, accept: '.md,.markdown,.txt,.json,.jsonl', 'aria-label': 'Files', onchange: () => take(input.files) })
  const zone = h('div', { class: 'dropzone', ondragover: (event) => { event.preventDefault(); zone.classList.add('over') }, ondragleave: () => zone.classList.remove('over'), ondrop: drop },
    icon('upload'), h('p', {}, 'Drop markdown, text or JSON files here, or'), button({ label: 'Choose files', onclick: () => input.click() }), input)
  const title = field({ label: 'Title', hint: 'Without one, the first heading.', maxlength: '255' })
  const content = field({ label: 'Or paste a document', rows: '6', name: 'content' })
  const token = field({ label: 'Token', placeholder: 'none', maxlength: '255' })
  const category = field({ label: 'Category', placeholder: 'none', maxlength: '255' })
  const format = choice({ label: 'Format', options: [['markdown', 'Markdown'], ['text', 'Text'], ['json', 'JSON']], value: 'markdown' })
  const wrong = h('p', { class: 'form-error', role: 'alert' })
  const submit = button({ label: 'Add', kind: 'primary', type: 'submit' })

  function take(more) {
    files.push(...more)
    chosen.replaceChildren(...files.map((file) => h('li', {}, file.name, ' ', h('small', {}, bytes(file.size)))))
  }
  function drop(event) {
    event.preventDefault()
    event.stopPropagation()
    zone.classList.remove('over')
    take(event.dataTransfer.files)
  }
  async function submitted(event) {
    event.preventDefault()
    const labels = { tokenSymbol: token.input.value.trim() || undefined, category: category.input.value.trim() || undefined }
    const pasted = content.input.value.trim() ? [{ ...labels, title: title.input.value.trim() || undefined, content: content.input.value, format: format.input.value }] : []
    submit.setAttribute('aria-busy', 'true')
    try {
      const documents = [...pasted, ...(await Promise.all(files.map((file) => read(file, labels)))).flat()]
      if (!documents.length) throw new Error('Paste a document, or choose files.')
      send(documents)
    } catch (error) {
      submit.setAttribute('aria-busy', 'false')
      wrong.textContent = error.message
    }
  }
  take([])
  return h('form', { class: 'stack', onsubmit: submitted }, zone, chosen, content, h('div', { class: 'columns' }, title, format, token, category), wrong, h('div', { class: 'form-end' }, submit))
}

/** A file's documents; what its documents say of themselves counts more than `labels`. */
async function read(file, labels) {
  const text = await file.text()
  const suffix = file.name.toLowerCase().split('.').pop()
  const told = Object.fromEntries(Object.entries(labels).filter(([, label]) => label))
  if (suffix === 'jsonl') return text.split('\n').filter((line) => line.trim()).map((line, at) => ({ ...told, ...parsed(line, `${file.name}, line ${at + 1}`) }))
  if (suffix !== 'json') return [{ ...told, id: file.name, content: text, format: FORMATS[suffix] ?? 'text', source: file.name, ...(suffix === 'txt' && { title: file.name.replace(/\.txt$/i, '') }) }]
  const value = parsed(text, file.name)
  const documents = Array.isArray(value) ? value : value?.documents ?? [value]
  return documents.every((each) => each?.content !== undefined) ? documents.map((each) => ({ ...told, ...each })) : [{ ...told, id: file.name, content: text, format: 'json', source: file.name }]
}

function parsed(text, name) {
  try {
    return JSON.parse(text)
  } catch {
    throw new Error(`${name} is no JSON.`)
  }
}

/** Put them batch by batch, and draw what became of each; a batch that failed can be put again. */
async function send(body, documents, close) {
  const list = h('ul', { class: 'outcomes' })
  const progress = h('p', { role: 'status' }, 'Sending …')
  body.replaceChildren(progress, list)
  let done = 0
  const put = async (batch) => {
    try {
      const { documents: outcomes } = await call('PUT', 'ai-with-rag/documents', { body: { documents: batch } })
      list.append(...outcomes.map((outcome, at) => line(outcome, batch[at])))
      done += outcomes.filter(({ outcome }) => outcome !== 'failed').length
    } catch (error) {
      const failed = h('li', {}, errorState(error, () => { failed.remove(); return put(batch) }))
      list.append(failed)
    }
    progress.textContent = `${done} of ${documents.length} ${documents.length === 1 ? 'document is' : 'documents are'} in the knowledge.`
  }
  for (const batch of batched(documents)) await put(batch)
  const finished = button({ label: 'Done', kind: 'primary', onclick: () => close() })
  body.append(h('div', { class: 'form-end' }, finished))
  finished.focus()
}

const line = ({ id, outcome, passages, embedded, error }, { title }) =>
  h('li', {}, badge(outcome, KINDS[outcome]), h('div', { class: 'named' }, h('strong', {}, title ?? id ?? 'A document'), h('small', {}, error ?? `${passages} ${passages === 1 ? 'passage' : 'passages'}, ${embedded} embedded now`)))

function batched(documents) {
  const batches = [[]]
  let size = 0
  for (const document of documents) {
    const more = new Blob([JSON.stringify(document)]).size
    if (batches.at(-1).length === BATCH || (size && size + more > BATCH_BYTES)) { batches.push([]); size = 0 }
    batches.at(-1).push(document)
    size += more
  }
  return batches
}
