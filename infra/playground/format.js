// Figures and times as people read them.

const whole = new Intl.NumberFormat('en')
const decimals = new Intl.NumberFormat('en', { maximumFractionDigits: 6 })
const dates = new Intl.DateTimeFormat('en', { dateStyle: 'medium', timeStyle: 'short' })
const days = new Intl.DateTimeFormat('en', { dateStyle: 'medium' })
const utcDays = new Intl.DateTimeFormat('en', { dateStyle: 'medium', timeZone: 'UTC' })
const utcHours = new Intl.DateTimeFormat('en', { month: 'short', day: 'numeric', hour: '2-digit', minute: '2-digit', hourCycle: 'h23', timeZone: 'UTC' })
const relative = new Intl.RelativeTimeFormat('en', { numeric: 'auto', style: 'short' })
const STEPS = [['minute', 60], ['hour', 3600], ['day', 86400], ['week', 604800]]

export const count = (number) => whole.format(number)
export const amount = (number) => decimals.format(number)
export const percent = (share) => `${(100 * share).toFixed(share < 0.1 && share > 0 ? 1 : 0)} %`
export const dateTime = (text) => dates.format(new Date(text))
export const day = (text) => days.format(new Date(text))
export const utcDay = (text) => utcDays.format(new Date(text))
export const utcHour = (text) => utcHours.format(new Date(text))
export const milliseconds = (number) => (number < 1000 ? `${Math.round(number)} ms` : `${(number / 1000).toFixed(1)} s`)

/** Small costs keep two digits that say something. */
export function usd(number) {
  const digits = number > 0 && number < 1 ? Math.min(8, 1 - Math.floor(Math.log10(number))) : 2
  return `$${number.toFixed(digits)}`
}

/** “5 min. ago”; the date for what is older than a month. */
export function ago(text) {
  const seconds = (Date.now() - new Date(text)) / 1000
  if (seconds < 45) return 'just now'
  const step = STEPS.findLast(([, length]) => seconds >= length * 0.75)
  return seconds > 30 * 86400 ? day(text) : relative.format(-Math.round(seconds / step[1]), step[0])
}

const UNITS = [['GB', 1e9], ['MB', 1e6], ['kB', 1e3]]

export function bytes(number) {
  const unit = UNITS.find(([, size]) => number >= size)
  return unit ? `${(number / unit[1]).toFixed(number / unit[1] < 10 ? 1 : 0)} ${unit[0]}` : `${number} bytes`
}
