// The model registry, for the project's owner: versions, who has users, how a canary stands, and the way back.
import { call } from '../api.js'
import { badge, button, card, confirm, dialog, emptyState, field, followed, heading, loaded, table, toast, toggle } from '../components.js'
import { h } from '../dom.js'
import { downloadButton } from '../downloads.js'
import { ago, bytes, count, dateTime, day, milliseconds, percent } from '../format.js'
import { go } from '../router.js'

const STATUS = { ready: 'good', failed: 'bad', uploading: 'warn', transferring: 'warn' }
const ACTIONS = {
  registered: 'Registered', ready: 'Ready', activated: 'Activated', canary: 'Became a canary', promoted: 'Promoted', rolled_back: 'Rolled back',
  kept: 'Weighed, and kept', refused: 'Refused by the gate', not_activated: 'Not activated', deleted: 'Deleted', failed: 'Failed',
}
const VERDICTS = { promoted: ['better', 'good'], rolled_back: ['worse', 'bad'], kept: ['not certain yet', 'plain'] }
const MEASURES = {
  feedback: { title: 'Thumbs up', format: percent, less: (value) => `${signed(100 * value)} points` },
  failures: { title: 'Failures', format: percent, less: (value) => `${signed(100 * value)} points` },
  latency: { title: 'Latency', format: milliseconds, less: (value) => `${signed(100 * (Math.exp(value) - 1))} %` },
}

const signed = (number) => `${number > 0 ? '+' : number < 0 ? '−' : ''}${Math.abs(number).toFixed(1)}`

export async function show(place, { params, signal }) {
  const [name, version] = params
  return name && version ? showVersion(place, name, version, signal) : showAll(place, signal)
}

async function showAll(place, signal) {
  const body = h('div', { class: 'stack' })
  const load = () => loaded(body, () => read(signal), (told) => drawn(told, load), { lines: 8, signal })
  place.append(heading('Models', 'What is served, and to whom: versions of fine-tuned models, behind a gate and a canary.', button({ label: 'Deploy', symbol: 'plus', kind: 'primary', onclick: () => deploy(load) })), body)
  await load()
}

async function read(signal) {
  const [{ models }, { decisions }] = await Promise.all([call('GET', 'deploy-model', { signal }), call('GET', 'deploy-model/canaries', { signal })])
  return { models, decisions }
}

function drawn({ models, decisions }, load) {
  if (!models.length) return emptyState({ symbol: 'model', title: 'No versions yet', text: 'Deploy a fine-tuned model’s files, or start a fine-tune job on an export: its version appears here.', action: h('a', { class: 'button plain', href: '#/exports' }, 'To the exports') })
  const families = Map.groupBy(models, ({ modelName }) => modelName)
  return [...families].map(([name, versions]) => family(name, versions, decisions.find(({ modelName }) => modelName === name), load))
}

function family(name, versions, decision, load) {
  const served = versions.filter(({ weight }) => weight > 0).sort((one, other) => other.isActive - one.isActive)
  const back = served.length > 0 && button({ label: 'Roll back', symbol: 'retry', onclick: () => rollBack(name, served, load) })
  return h(
    'section', { class: 'card stack' },
    h('header', { class: 'heading' }, h('h2', {}, name), back && h('div', { class: 'actions' }, back)),
    traffic(served),
    decision && canary(decision, load),
    h('div', { class: 'with-actions' }, table({ caption: `Versions of ${name}`, columns: columns(load), rows: versions })),
  )
}

function traffic(served) {
  if (!served.length) return h('p', { class: 'hint' }, 'No version has users: they are answered by the chain.')
  return h('div', { class: 'traffic' },
    h('div', { class: 'weights', 'aria-hidden': 'true' }, served.map(({ isCanary, weight }) => h('span', { class: isCanary ? 'of-canary' : 'of-active', style: { width: `${100 * weight}%` } }))),
    h('ul', {}, served.map(({ version, isCanary, weight, canarySince }) => h('li', {}, h('span', { class: `dot ${isCanary ? 'of-canary' : 'of-active'}`, 'aria-hidden': 'true' }), h('strong', {}, version), ` ${isCanary ? 'canary' : 'active'}, ${percent(weight)} of its users`, isCanary && canarySince && `, since ${ago(canarySince)}`))))
}

const columns = (load) => [
  { title: 'Version', cell: ({ modelName, version }) => h('a', { href: `#/models/${encodeURIComponent(modelName)}/${encodeURIComponent(version)}` }, h('strong', {}, version)) },
  { title: 'State', cell: (each) => h('span', { class: 'badges' }, state(each)) },
  { title: 'Asked at', cell: ({ provider, providerModel }) => (providerModel ? `${provider}:${providerModel}` : h('span', { class: 'hint' }, 'nowhere yet')) },
  { title: 'Users', align: 'end', cell: ({ weight }) => (weight ? percent(weight) : '–') },
  { title: 'Size', align: 'end', cell: ({ sizeBytes }) => (sizeBytes ? bytes(sizeBytes) : '–') },
  { title: 'Registered', cell: ({ createdAt }) => h('time', { datetime: createdAt, title: dateTime(createdAt) }, ago(createdAt)) },
  { title: h('span', { class: 'hidden' }, 'Actions'), align: 'end', cell: (each) => h('div', { class: 'row-actions' }, actions(each, load)) },
]

const state = ({ status, isActive, isCanary, transfer }) => [
  isActive ? badge('active', 'good') : isCanary ? badge('canary', 'warn') : badge(status, STATUS[status] === 'good' ? 'plain' : STATUS[status]),
  transfer && badge(percent(transfer.bytesDone / Math.max(1, transfer.bytesTotal))),
]

function actions(each, load, deleted = load) {
  const { modelName, version, status, isActive, isCanary, weight, providerModel } = each
  return [
    status === 'ready' && !isActive && button({ label: isCanary ? 'Change' : 'Activate', kind: 'plain small', 'aria-label': `${isCanary ? 'Change the share of' : 'Activate'} ${modelName} ${version}`, disabled: !providerModel, onclick: () => activate(each, load) }),
    !weight && button({ title: `Delete ${modelName} ${version}`, symbol: 'trash', kind: 'ghost small', onclick: () => remove(each, deleted) }),
  ]
}

/** What a check would decide of the canary now, on which figures. */
function canary({ modelName, version, active, action, reason, numbers }, load) {
  const [words, kind] = VERDICTS[action]
  const rows = numbers.comparisons.map((each) => ({ ...each, ...MEASURES[each.measure], isCertain: each.p_value !== null && each.p_value < numbers.alpha / numbers.comparisons.length }))
  const users = { title: 'Users', format: count, canary: numbers.users.canary, active: numbers.users.active }
  return h(
    'section', { class: 'canary', 'aria-label': `The canary of ${modelName}` },
    h('header', { class: 'heading' }, h('div', {}, h('h3', {}, `${version} beside ${active} `, badge(words, kind)), h('p', {}, reason)), h('div', { class: 'actions' }, button({ label: 'Check now', onclick: () => check(load) }))),
    table({
      caption: `${version} beside ${active}`, rows: [users, ...rows],
      columns: [
        { title: 'Measure', cell: ({ title }) => title },
        { title: `${version} (canary)`, align: 'end', cell: (row) => figure(row, row.canary, row.canary_count) },
        { title: `${active} (active)`, align: 'end', cell: (row) => figure(row, row.active, row.active_count) },
        { title: 'Difference', align: 'end', cell: ({ difference, less }) => (difference === null || difference === undefined ? '–' : less(difference)) },
        { title: 'Certain?', cell: ({ measure, p_value, isCertain }) => (!measure ? '' : p_value === null ? badge('too few') : h('span', { class: 'badges' }, badge(isCertain ? 'yes' : 'no', isCertain ? 'good' : 'plain'), h('small', {}, `p ${p_value < 0.001 ? '< 0.001' : `= ${p_value.toFixed(3)}`}`))) },
      ],
    }),
    h('p', { class: 'hint' }, `Sequential test (${numbers.test}), valid however often one looks; certain below p = ${(numbers.alpha / numbers.comparisons.length).toFixed(3)}. Since ${dateTime(numbers.since)}.`),
  )
}

const figure = ({ format }, value, of) => (value === null || value === undefined ? '–' : [format(value), of !== undefined && h('small', {}, ` of ${count(of)}`)])

async function check(load) {
  const text = 'Every canary is weighed: one that is surely better gets all users, and one that is surely worse goes.'
  if (await confirm({ title: 'Check the canaries now?', text, label: 'Check' })) await done(() => call('POST', 'deploy-model/canaries'), ({ decisions }) => (decisions.length ? decisions.map(({ modelName, version, action }) => `${modelName} ${version}: ${action.replace('_', ' ')}`).join(', ') : 'There is no canary'), load)
}

async function rollBack(name, served, load) {
  const taken = served.find(({ isCanary }) => isCanary) ?? served[0]
  const reason = field({ label: 'Reason', placeholder: 'for the history', maxlength: '1000' })
  const text = taken.isCanary ? `The canary ${taken.version} loses its users; the active version gets them.` : `${taken.version} loses its users; the version that was active before it gets them.`
  const meant = await dialog({ title: `Roll ${name} back?`, body: () => [h('p', {}, text), reason], actions: (close) => [button({ label: 'Cancel', onclick: () => close() }), button({ label: 'Roll back', kind: 'danger', onclick: () => close(true) })] })
  if (meant) await done(() => call('POST', `deploy-model/${encodeURIComponent(name)}/rollback`, { body: { version: taken.version, reason: reason.input.value.trim() || null } }), ({ active }) => (active ? `${active} is active` : 'No version has users now'), load)
}

async function remove({ modelName, version }, load) {
  if (await confirm({ title: `Delete ${modelName} ${version}?`, text: 'Its files go too, and its name is never given again.', label: 'Delete' })) await done(() => call('DELETE', `deploy-model/${encodeURIComponent(modelName)}/${encodeURIComponent(version)}`), () => 'Deleted', load)
}

async function done(work, words, load) {
  try {
    toast(words(await work()))
  } catch (error) {
    toast(error.message, { kind: 'error' })
  }
  await load()
}

/** Ask for a share and a reason, and activate; where the gate refuses, what it found, and all the same. */
async function activate({ modelName, version, isCanary, weight }, load) {
  const share = h('input', { type: 'range', min: '5', max: '100', step: '5', value: isCanary ? String(Math.round(100 * weight)) : '10', id: 'share', oninput: () => { shown.textContent = worded() } })
  const shown = h('output', { for: 'share' })
  const worded = () => (share.value === '100' ? 'all users' : `${share.value} % of users, as a canary`)
  const reason = field({ label: 'Reason', placeholder: 'for the history', maxlength: '1000' })
  const said = h('div', { role: 'alert' })
  let force = false
  const ask = async (close, { currentTarget }) => {
    currentTarget.setAttribute('aria-busy', 'true')
    try {
      const body = { weight: share.value === '100' ? null : Number(share.value) / 100, reason: reason.input.value.trim() || null, force }
      const told = await call('POST', `deploy-model/${encodeURIComponent(modelName)}/${encodeURIComponent(version)}/activate`, { body })
      close(told.status === 'evaluating' ? 'It is evaluated now: its history says how it ends' : `${version} has users`)
    } catch (error) {
      currentTarget.setAttribute('aria-busy', 'false')
      said.replaceChildren(h('p', { class: 'form-error' }, error.message), ...(error.code === 'gate_refused' ? [evaluated(error.body.evaluation), toggle({ label: 'Activate it all the same', hint: 'Passes over the gate; the history says so.', on: force, onchange: (on) => { force = on } })] : []))
    }
  }
  shown.textContent = worded()
  const told = await dialog({
    title: `${isCanary ? 'Change the share of' : 'Activate'} ${modelName} ${version}`,
    body: () => [h('div', { class: 'field' }, h('label', { for: 'share' }, 'Who gets it: ', shown), share), reason, h('p', { class: 'hint' }, 'It is evaluated beside the active version first, if that has not been done.'), said],
    actions: (close) => [button({ label: 'Cancel', onclick: () => close() }), button({ label: isCanary ? 'Change' : 'Activate', kind: 'primary', onclick: (event) => ask(close, event) })],
  })
  if (!told) return
  toast(told)
  await load()
}

const GATE = [
  ['Score', 'score', percent], ['Failed answers', 'failed', count], ['Citations hold', 'cited', percent], ['“I don’t know” where nothing says', 'refused', percent],
  ['Made-up links', 'flagged', count], ['Median latency', 'latency_p50_ms', milliseconds],
]

function evaluated(evaluation) {
  if (!evaluation) return null
  const { candidate, active } = evaluation
  const cell = (scores, name, format) => (scores?.[name] === null || scores?.[name] === undefined ? '–' : format(scores[name]))
  return table({
    caption: 'Evaluation', rows: GATE,
    columns: [
      { title: `${count(candidate.asked)} examples`, cell: ([title]) => title },
      { title: 'This version', align: 'end', cell: ([, name, format]) => cell(candidate, name, format) },
      { title: 'Active version', align: 'end', cell: ([, name, format]) => cell(active, name, format) },
    ],
  })
}

async function deploy(load) {
  const fields = [
    field({ label: 'Name', name: 'modelName', required: true, maxlength: '100', placeholder: 'ton' }),
    field({ label: 'Base model', name: 'baseModel', required: true, placeholder: 'llama-3.1-8b' }),
    field({ label: 'Files', name: 'source', required: true, placeholder: 's3://training/runs/7/', hint: 's3://… or https://… of an allowed host.' }),
    field({ label: 'Provider', name: 'provider', placeholder: 'together' }),
    field({ label: 'Model at the provider', name: 'providerModel', placeholder: 'me/ton-7' }),
  ]
  const wrong = h('p', { class: 'form-error', role: 'alert' })
  const send = async (close) => {
    try {
      const { model } = await call('POST', 'deploy-model', { body: Object.fromEntries(fields.map(({ input }) => [input.name, input.value.trim()]).filter(([, value]) => value)) })
      close(model)
    } catch (error) {
      wrong.textContent = error.message
    }
  }
  const model = await dialog({
    title: 'Deploy a version',
    body: (close) => h('form', { class: 'stack', id: 'deploy', onsubmit: (event) => { event.preventDefault(); return send(close) } }, fields, wrong),
    actions: (close) => [button({ label: 'Cancel', onclick: () => close() }), button({ label: 'Deploy', kind: 'primary', type: 'submit', form: 'deploy' })],
  })
  if (!model) return
  toast(`${model.modelName} ${model.version} is ${model.status}`)
  await load()
}

async function showVersion(place, name, version, signal) {
  const body = h('div', { class: 'stack' })
  const at = `deploy-model/${encodeURIComponent(name)}/${encodeURIComponent(version)}`
  place.append(h('a', { class: 'back', href: '#/models' }, '← Models'), heading(`${name} ${version}`), body)
  const load = () => followed(body, () => call('GET', at, { signal }), (model) => described(model, at, load), ({ status }) => ['uploading', 'transferring'].includes(status), signal)
  await load()
}

function described(model, at, load) {
  const { evaluation, ...metrics } = model.performanceMetrics ?? {}
  const facts = [
    ['State', h('span', { class: 'badges' }, state(model))], ['Share of users', model.weight ? percent(model.weight) : 'none'], ['Failure', model.failure], ['Base model', model.baseModel],
    ['Asked at', model.providerModel && `${model.provider}:${model.providerModel}`], ['Came from', model.source], ['Size', model.sizeBytes && bytes(model.sizeBytes)],
    ['Learned from export', model.datasetExportId && h('a', { href: `#/exports/${model.datasetExportId}` }, String(model.datasetExportId))], ['Rows it learned from', model.trainingDataSize && count(model.trainingDataSize)],
    ['Fine-tuned', model.fineTunedOn && day(model.fineTunedOn)], ['Deployed', model.deployedAt && dateTime(model.deployedAt)], ['SHA-256', model.sha256 && h('code', {}, model.sha256)],
    ...Object.entries(metrics).map(([key, value]) => [key, typeof value === 'object' ? JSON.stringify(value) : String(value)]),
  ]
  return [
    h('div', { class: 'actions' }, actions(model, load, () => go('models'))),
    card('The version', h('dl', { class: 'facts' }, facts.filter(([, value]) => value).map(([key, value]) => h('div', {}, h('dt', {}, key), h('dd', {}, value))))),
    evaluation && card('Evaluation at the gate', h('p', {}, badge(evaluation.verdict, evaluation.verdict === 'passed' ? 'good' : 'bad'), ' ', evaluation.reasons.join(' ')), evaluated(evaluation)),
    model.files?.length ? card('Files', files(model.files, at)) : null,
    card('History', history(model.history)),
  ]
}

function files(listed, at) {
  return table({
    caption: 'Files', rows: listed,
    columns: [
      { title: 'Path', cell: ({ path }) => path },
      { title: 'Size', align: 'end', cell: ({ size }) => bytes(size) },
      { title: 'SHA-256', cell: ({ sha256 }) => h('code', { title: sha256 }, sha256.slice(0, 12), '…') },
      { title: h('span', { class: 'hidden' }, 'Download'), align: 'end', cell: ({ path }) => downloadButton(`${at}/url`, path) },
    ],
  })
}

const history = (steps) =>
  h('ol', { class: 'history' }, steps.map(({ action, weight, previousVersion, actor, reason, numbers, createdAt }) =>
    h('li', {},
      h('p', {}, h('strong', {}, ACTIONS[action] ?? action), weight !== null && weight < 1 && weight > 0 ? ` at ${percent(weight)}` : '', previousVersion && ` after ${previousVersion}`),
      reason && h('p', {}, reason),
      h('p', { class: 'hint' }, h('time', { datetime: createdAt }, dateTime(createdAt)), actor && ` · ${actor}`),
      numbers && h('details', {}, h('summary', {}, 'Numbers'), h('pre', { tabindex: '0' }, JSON.stringify(numbers, null, 2))))))
