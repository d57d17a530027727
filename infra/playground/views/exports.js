// Training files of what users liked, for the project's owner: start an export, follow it, read it, train on it.
import { call } from '../api.js'
import { badge, button, card, choice, dialog, emptyState, field, followed, heading, loaded, older, table, toast, toggle } from '../components.js'
import { h } from '../dom.js'
import { downloadButton, signed } from '../downloads.js'
import { ago, bytes, count, dateTime, percent } from '../format.js'
import { go } from '../router.js'

const STATUS = { ready: 'good', failed: 'bad', replaced: 'plain', collecting: 'warn', writing: 'warn', cancelled: 'bad' }
const FORMATS = {
  alpaca: 'Alpaca', together: 'Together', openai: 'OpenAI', sharegpt: 'ShareGPT', openai_dpo: 'OpenAI, preference pairs', together_dpo: 'Together, preference pairs',
}
const RUNNING = ['collecting', 'writing', 'uploading', 'training', 'deploying']

export async function show(place, { params: [id], signal }) {
  return id ? showExport(place, id, signal) : showAll(place, signal)
}

async function showAll(place, signal) {
  const body = h('div', { class: 'stack' })
  place.append(heading('Exports', 'What users liked and consented to, redacted and without duplicates, as training files.', button({ label: 'New export', symbol: 'plus', kind: 'primary', onclick: start })), body)
  let pages = 1
  const read = async () => {
    const told = { exports: [], next: null }
    for (let page = 0; page < pages && (!page || told.next); page++) {
      const { exports, next } = await call('GET', `export-training-data${page ? `?after=${told.next}` : ''}`, { signal })
      Object.assign(told, { exports: [...told.exports, ...exports], next })
    }
    return told
  }
  const follow = () => followed(body, read, (told) => list(told, () => { pages++; return follow() }), ({ exports }) => exports.some(isRunning), signal)
  await follow()
}

const isRunning = ({ status }) => RUNNING.includes(status)

function list({ exports, next }, more) {
  if (!exports.length) return emptyState({ symbol: 'download', title: 'No exports yet', text: 'An export takes the answers that users liked, if they allow it, and makes training files of them.', action: button({ label: 'New export', symbol: 'plus', onclick: start }) })
  const columns = [
    { title: 'Export', cell: ({ exportId }) => h('a', { href: `#/exports/${exportId}` }, h('strong', {}, `#${exportId}`)) },
    { title: 'State', cell: (each) => h('span', { class: 'badges' }, badge(each.status, STATUS[each.status]), isRunning(each) && each.toCollect > 0 && h('small', {}, percent(each.collected / each.toCollect))) },
    { title: 'Rows', align: 'end', cell: ({ rows }) => count(rows) },
    { title: 'Formats', cell: ({ options }) => options.formats.map((format) => FORMATS[format] ?? format).join(', ') },
    { title: 'By', cell: ({ actor }) => h('span', { class: 'clipped', title: actor ?? '' }, actor ?? '') },
    { title: 'Begun', cell: ({ createdAt }) => h('time', { datetime: createdAt, title: dateTime(createdAt) }, ago(createdAt)) },
  ]
  return [table({ caption: 'Exports', rows: exports, columns }), next && older(more)]
}

async function start() {
  const formats = Object.entries(FORMATS).map(([value, title]) => h('label', { class: 'check' }, h('input', { type: 'checkbox', name: 'format', value, checked: ['alpaca', 'together'].includes(value) }), title))
  const rated = choice({ label: 'Which answers', options: [['1', 'liked'], ['0', 'rated, and not disliked']], value: '1' })
  const quality = field({ label: 'Least quality, 0 to 1', type: 'number', min: '0', max: '1', step: '0.05', value: '0' })
  const share = field({ label: 'For validation, of the users', type: 'number', min: '0', max: '0.5', step: '0.05', value: '0.1' })
  const model = field({ label: 'Of one model', placeholder: 'any', maxlength: '1000' })
  const since = field({ label: 'From', type: 'date' })
  const until = field({ label: 'Before', type: 'date' })
  const options = { incremental: false, dryRun: false }
  const wrong = h('p', { class: 'form-error', role: 'alert' })
  const send = async (close) => {
    const body = {
      ...options, formats: formats.map((label) => label.firstChild).filter(({ checked }) => checked).map(({ value }) => value), minFeedback: Number(rated.input.value),
      minQuality: Number(quality.input.value), validationShare: Number(share.input.value), modelVersion: model.input.value.trim() || null, since: midnight(since), until: midnight(until),
    }
    try {
      close(await call('POST', 'export-training-data', { body, headers: { Prefer: 'respond-async' } }))
    } catch (error) {
      wrong.textContent = error.message
    }
  }
  const begun = await dialog({
    title: 'New export',
    body: (close) => h('form', { class: 'stack', id: 'export', onsubmit: (event) => { event.preventDefault(); return send(close) } },
      h('fieldset', { class: 'checks' }, h('legend', {}, 'Formats'), formats), h('div', { class: 'columns' }, rated, model, quality, share, since, until),
      toggle({ label: 'Only what is new', hint: 'Rows that are new or changed since the last export with these options.', on: false, onchange: (on) => { options.incremental = on } }),
      toggle({ label: 'Count only', hint: 'Nothing is written.', on: false, onchange: (on) => { options.dryRun = on } }), wrong),
    actions: (close) => [button({ label: 'Cancel', onclick: () => close() }), button({ label: 'Start', kind: 'primary', type: 'submit', form: 'export' })],
  })
  if (begun) go(`exports/${begun.exportId}`)
}

const midnight = ({ input }) => (input.value ? `${input.value}T00:00:00Z` : null)

async function showExport(place, id, signal) {
  const body = h('div', { class: 'stack' })
  const jobs = h('div', {})
  place.append(h('a', { class: 'back', href: '#/exports' }, '← Exports'), heading(`Export #${id}`), body, jobs)
  const at = `export-training-data/${encodeURIComponent(id)}`
  let following
  const follow = () => followed(jobs, () => call('GET', `export-training-data/fine-tunes?exportId=${encodeURIComponent(id)}`, { signal }), (told) => jobsCard(told, () => fineTune(at, follow)), ({ jobs }) => jobs.some(isRunning), signal)
  await followed(body, () => call('GET', at, { signal }), (told) => { following ??= follow(); return described(told, at) }, isRunning, signal)
}

function described(each, at) {
  const { status, rows, collected, toCollect, failure, skipped, files, options, manifest } = each
  const share = toCollect ? collected / toCollect : 0
  return [
    card(null, h('div', { class: 'export-state' }, badge(status, STATUS[status]), h('p', { class: 'big' }, count(rows), h('small', {}, rows === 1 ? ' row' : ' rows'))),
      isRunning(each) && h('div', { class: 'progress' }, h('progress', { max: '1', value: share, 'aria-label': 'Collected' }), h('span', {}, status === 'writing' ? 'Writing the files …' : `${count(collected)} of ${count(toCollect)} conversations read`)),
      failure && h('p', { class: 'notice' }, failure),
      each.replacedBy && h('p', { class: 'notice' }, 'It had rows of a user who was erased: ', h('a', { href: `#/exports/${each.replacedBy}` }, `export #${each.replacedBy}`), ' is in its place.')),
    h('div', { class: 'cards' },
      card('Asked for', h('dl', { class: 'facts' }, fact('Formats', options.formats.map((format) => FORMATS[format] ?? format).join(', ')), fact('Answers', options.minFeedback ? 'liked' : 'rated, and not disliked'), fact('Least quality', String(options.minQuality)),
        fact('For validation', percent(options.validationShare)), fact('Model', options.modelVersion), fact('Span', span(options)), fact('Only what is new', options.incremental && 'yes'), fact('Begun', dateTime(each.createdAt)), fact('By', each.actor))),
      card('Left out', Object.keys(skipped).length
        ? h('dl', { class: 'facts' }, Object.entries(skipped).sort(([, one], [, other]) => other - one).map(([reason, number]) => fact(reason.replaceAll('_', ' '), count(number))))
        : h('p', { class: 'hint' }, isRunning(each) ? 'Counted when the rows are selected.' : 'Nothing was left out.'))),
    files.length ? card('Files', filesTable(files, at), manifest && button({ label: 'Read the manifest', symbol: 'book', onclick: () => readManifest(at) })) : null,
  ]
}

const fact = (key, value) => value && h('div', {}, h('dt', {}, key), h('dd', {}, value))

const span = ({ since, until }) => (since || until) && [since && `from ${dateTime(since)}`, until && `before ${dateTime(until)}`].filter(Boolean).join(' ')

const filesTable = (files, at) =>
  table({
    caption: 'Files', rows: files,
    columns: [
      { title: 'File', cell: ({ path }) => h('strong', {}, path) },
      { title: 'For', cell: ({ split }) => (split === 'train' ? 'training' : split) },
      { title: 'Rows', align: 'end', cell: ({ rows }) => count(rows) },
      { title: 'Tokens', align: 'end', cell: ({ tokens }) => count(tokens) },
      { title: 'Size', align: 'end', cell: ({ sizeBytes }) => bytes(sizeBytes) },
      { title: h('span', { class: 'hidden' }, 'Download'), align: 'end', cell: ({ path }) => downloadButton(`${at}/urls`, path) },
    ],
  })

async function readManifest(at) {
  const body = h('div', { class: 'stack' })
  const read = async () => {
    const answer = await fetch(await signed(`${at}/urls`, 'manifest.json'))
    if (!answer.ok) throw new Error(`Storage answered with status ${answer.status}.`)
    return answer.json()
  }
  const shown = loaded(body, read, manifestOf, { lines: 6 })
  await dialog({ title: 'Manifest', body: () => body, actions: (close) => button({ label: 'Close', onclick: () => close() }) })
  await shown
}

function manifestOf(manifest) {
  const { files, consent, watermark, promptVersion, rules, tokensAre, lineage } = manifest
  return [
    h('dl', { class: 'facts' }, fact('Consent', consent && `of ${count(consent.users)} users, as of ${dateTime(consent.at)}`), fact('Up to change', watermark?.selected_until), fact('Prompt', promptVersion), fact('Rules', rules), fact('Tokens are', tokensAre), fact('Lineage', lineage)),
    h('ul', { class: 'hashes' }, files.map((file) => h('li', {}, h('strong', {}, file.path), h('code', {}, file.sha256)))),
    h('details', {}, h('summary', {}, 'As JSON'), h('pre', { tabindex: '0' }, JSON.stringify(manifest, null, 2))),
  ]
}

const jobsCard = ({ jobs }, begin) =>
  card('Fine-tune jobs', jobs.length
    ? table({
      caption: 'Fine-tune jobs', rows: jobs,
      columns: [
        { title: 'Job', cell: ({ id }) => `#${id}` },
        { title: 'State', cell: ({ status, failure }) => h('div', { class: 'named' }, badge(status, STATUS[status] ?? 'warn'), failure && h('small', {}, failure)) },
        { title: 'At', cell: ({ provider, providerStatus }) => [provider, providerStatus && h('small', {}, ` ${providerStatus}`)] },
        { title: 'Base model', cell: ({ baseModel }) => baseModel },
        { title: 'Becomes', cell: ({ model, version, status }) => (status === 'ready' ? h('a', { href: `#/models/${encodeURIComponent(model)}/${encodeURIComponent(version)}` }, `${model} ${version}`) : `${model} ${version}`) },
        { title: 'Begun', cell: ({ createdAt }) => ago(createdAt) },
      ],
    })
    : h('p', { class: 'hint' }, 'No model has learned from this export yet.'), button({ label: 'Start a fine-tune job', symbol: 'bolt', onclick: begin }))

async function fineTune(at, follow) {
  const provider = choice({ label: 'Provider', options: [['together', 'Together'], ['openai', 'OpenAI'], ['huggingface', 'Hugging Face']], value: 'together' })
  const method = choice({ label: 'Method', options: [['supervised', 'Supervised'], ['dpo', 'Preference pairs (DPO)']], value: 'supervised' })
  const base = field({ label: 'Base model', name: 'baseModel', required: true, maxlength: '1000', placeholder: 'meta-llama/Meta-Llama-3.1-8B-Instruct-Reference' })
  const name = field({ label: 'Name of the model', maxlength: '100', placeholder: 'ton', hint: 'Without one, the base model’s.' })
  const wrong = h('p', { class: 'form-error', role: 'alert' })
  const send = async (close) => {
    try {
      close(await call('POST', `${at}/fine-tune`, { body: { provider: provider.input.value, method: method.input.value, baseModel: base.input.value.trim(), modelName: name.input.value.trim() || null } }))
    } catch (error) {
      wrong.textContent = error.message
    }
  }
  const job = await dialog({
    title: 'Start a fine-tune job',
    body: (close) => h('form', { class: 'stack', id: 'fine-tune', onsubmit: (event) => { event.preventDefault(); return send(close) } }, h('div', { class: 'columns' }, provider, method), base, name, wrong),
    actions: (close) => [button({ label: 'Cancel', onclick: () => close() }), button({ label: 'Start', kind: 'primary', type: 'submit', form: 'fine-tune' })],
  })
  if (!job) return
  toast(`Job #${job.id} is ${job.status}`)
  await follow()
}
