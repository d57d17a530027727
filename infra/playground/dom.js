// Elements without markup: text is always text, and nothing here takes HTML.

const SVG = 'http://www.w3.org/2000/svg'
const ICONS = {
  bolt: ['M13 2 4 14h6l-1 8 9-12h-6z'],
  chat: ['M21 12a8 8 0 0 1-8 8H4l1.8-3A8 8 0 1 1 21 12z'],
  plus: ['M12 5v14', 'M5 12h14'],
  swap: ['M7 4 3 8l4 4', 'M3 8h14', 'M17 12l4 4-4 4', 'M21 16H7'],
  usage: ['M4 20V10', 'M10 20V4', 'M16 20v-7', 'M22 20H2'],
  settings: ['M4 7h10', 'M18 7h2', 'M4 17h2', 'M10 17h10', 'M16 5v4', 'M8 15v4'],
  book: ['M4 5a2 2 0 0 1 2-2h13v16H6a2 2 0 0 0-2 2z', 'M4 21a2 2 0 0 0 2 0h13'],
  model: ['M12 3 3 8l9 5 9-5z', 'M3 13l9 5 9-5'],
  download: ['M12 4v11', 'M7 11l5 5 5-5', 'M4 20h16'],
  search: ['M11 18a7 7 0 1 0 0-14 7 7 0 0 0 0 14z', 'M20 20l-4-4'],
  send: ['M12 20V5', 'M5 12l7-7 7 7'],
  stop: ['M6 6h12v12H6z'],
  up: ['M7 21V10l4-7a2 2 0 0 1 2 2v4h5a2 2 0 0 1 2 2.3l-1.2 7A2 2 0 0 1 17 21z', 'M3 10h4v11H3z'],
  down: ['M17 3v11l-4 7a2 2 0 0 1-2-2v-4H6a2 2 0 0 1-2-2.3l1.200-7A2 2 0 0 1 7 3z', 'M21 14h-4V3h4z'],
  copy: ['M9 9h11v11H9z', 'M5 15H4V4h11v1'],
  check: ['M5 13l4 4L19 7'],
  close: ['M6 6l12 12', 'M18 6L6 18'],
  menu: ['M4 7h16', 'M4 12h16', 'M4 17h16'],
  sun: ['M12 16a4 4 0 1 0 0-8 4 4 0 0 0 0 8z', 'M12 2v2', 'M12 20v2', 'M2 12h2', 'M20 12h2', 'M5 5l1.400 1.400', 'M17.600 17.600 19 19', 'M5 19l1.400-1.400', 'M17.600 6.400 19 5'],
  moon: ['M20 14.500A8 8 0 0 1 9.500 4 8 8 0 1 0 20 14.500z'],
  leave: ['M15 4h4v16h-4', 'M10 8l-4 4 4 4', 'M6 12h9'],
  warning: ['M12 4 2.500 20h19z', 'M12 10v4', 'M12 17v.010'],
  offline: ['M3 3l18 18', 'M8.500 15.500a5 5 0 0 1 7 0', 'M5 12a10 10 0 0 1 4-2.400', 'M19 12a10 10 0 0 0-5-2.800', 'M12 19v.010'],
  retry: ['M4 12a8 8 0 1 1 2.500 5.800', 'M4 20v-5h5'],
  trash: ['M4 7h16', 'M9 7V4h6v3', 'M6 7l1 13h10l1-13', 'M10 11v5', 'M14 11v5'],
  upload: ['M12 16V5', 'M7 9l5-5 5 5', 'M4 20h16'],
  lock: ['M6 11h12v9H6z', 'M8.500 11V8a3.500 3.500 0 0 1 7 0v3'],
}

/**
 * An element: `h('p', {class: 'hint'}, 'text', child)`. Functions named `on…` are listeners, `dataset` and `style` are
 * objects, `true` and `false` make and leave out an attribute; children that are null or false are left out.
 */
export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag)
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith('on')) element.addEventListener(name.slice(2), value)
    else if (name === 'dataset') Object.assign(element.dataset, value)
    else if (name === 'style') for (const [property, worth] of Object.entries(value)) element.style.setProperty(property, worth)
    else if (name === 'value') element.value = value
    else if (value !== undefined && value !== null && value !== false) element.setAttribute(name, value === true ? '' : value)
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false))
  return element
}

/** An icon beside a text that says the same, or in a button with a label: hidden from readers. */
export function icon(name) {
  const svg = document.createElementNS(SVG, 'svg')
  svg.setAttribute('viewBox', '0 0 24 24')
  svg.setAttribute('class', 'icon')
  svg.setAttribute('aria-hidden', 'true')
  for (const d of ICONS[name] ?? []) {
    const path = document.createElementNS(SVG, 'path')
    path.setAttribute('d', d)
    svg.append(path)
  }
  return svg
}

let count = 0

/** An id of this page's own, for `aria-labelledby` and its like. */
export const uniqueId = (name) => `${name}-${++count}`
