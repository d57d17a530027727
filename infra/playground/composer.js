// Where a question is written: Enter sends, Shift+Enter breaks the line, / comes here. What isn't sent outlives a reload.
import { button } from './components.js'
import { h } from './dom.js'

const MOST = 4000

/** `element`, `fill(text)`, `focus()`, `busy(isBusy)`; `send(text)` and `stop()` are called. The draft is kept under `name`. */
export function composer({ name, send, stop, signal }) {
  const hint = h('p', { class: 'hint', id: 'composer-hint' })
  const input = h('textarea', { id: 'question', rows: '1', maxlength: MOST, placeholder: 'Ask about tokens or your swaps', 'aria-label': 'Your question', 'aria-describedby': 'composer-hint', enterkeyhint: 'send' })
  const sending = button({ title: 'Send', symbol: 'send', kind: 'primary send', type: 'submit' })
  const stopping = button({ title: 'Stop the answer', symbol: 'stop', kind: 'primary send', onclick: stop, hidden: true })
  const element = h('form', { class: 'composer', onsubmit: (event) => { event.preventDefault(); submit() } }, h('div', { class: 'composer-box' }, input, sending, stopping), hint)
  let isBusy = false

  const changed = () => {
    if (input.value) sessionStorage.setItem(name(), input.value)
    else sessionStorage.removeItem(name())
    input.style.height = 'auto'
    input.style.height = `${Math.min(input.scrollHeight, 220)}px`
    sending.disabled = !input.value.trim()
    const left = MOST - input.value.length
    hint.replaceChildren(...(left < 500 ? [`${left} characters left`] : [h('kbd', {}, 'Enter'), ' sends, ', h('kbd', {}, 'Shift Enter'), ' breaks the line. Answers can be wrong: check the sources.']))
  }
  const submit = () => {
    const text = input.value.trim()
    if (!text || isBusy) return
    fill('')
    send(text)
  }
  const fill = (text) => { input.value = text; changed() }
  input.addEventListener('input', changed)
  input.addEventListener('keydown', (event) => {
    if (event.key !== 'Enter' || event.shiftKey || event.isComposing) return
    event.preventDefault()
    submit()
  })
  addEventListener('keydown', (event) => {
    if (event.key !== '/' || event.ctrlKey || event.metaKey || event.target.closest('input, textarea, select, dialog[open]')) return
    event.preventDefault()
    input.focus()
  }, { signal })
  fill(sessionStorage.getItem(name()) ?? '')
  return {
    element, fill, focus: () => input.focus(),
    settle: changed,
    busy(is) {
      isBusy = is
      sending.hidden = is
      stopping.hidden = !is
    },
  }
}
