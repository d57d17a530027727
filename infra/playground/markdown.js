// A model's markdown as elements: marked reads it, DOMPurify keeps what can't do anything, and nothing loads from elsewhere.
import DOMPurify from './vendor/dompurify.js'
import { Marked } from './vendor/marked.js'

const KEPT = {
  ALLOWED_TAGS: ['p', 'br', 'hr', 'strong', 'em', 'del', 'code', 'pre', 'blockquote', 'ul', 'ol', 'li', 'a', 'h1', 'h2', 'h3', 'h4', 'h5', 'h6', 'table', 'thead', 'tbody', 'tr', 'th', 'td'],
  ALLOWED_ATTR: ['href', 'start', 'align'],
  ALLOWED_URI_REGEXP: /^(?:https?|mailto):/i,
  ALLOW_DATA_ATTR: false,
  ALLOW_ARIA_ATTR: false,
  RETURN_DOM_FRAGMENT: true,
}

const ESCAPES = { '&': '&amp;', '<': '&lt;', '>': '&gt;' }
const escaped = ({ text }) => text.replace(/[&<>]/g, (character) => ESCAPES[character])
// HTML in an answer is shown as it was written, and an image as its words.
const marked = new Marked({ gfm: true, breaks: true, renderer: { html: escaped, image: escaped } })

/** What the model wrote, as a fragment; links open elsewhere and tell nobody where they were. */
export function markdown(text) {
  const fragment = DOMPurify.sanitize(marked.parse(text), KEPT)
  for (const link of fragment.querySelectorAll('a')) {
    link.target = '_blank'
    link.rel = 'noopener noreferrer'
  }
  for (const box of fragment.querySelectorAll('table, pre')) box.tabIndex = 0
  return fragment
}
