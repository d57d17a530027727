// Charts over time by uPlot: colours from the theme, as wide as their place, and the same figures as a table.
import uPlot from './vendor/uplot.js'
import { table } from './components.js'
import { h } from './dom.js'
import { utcDay } from './format.js'

const COLOURS = ['--series-1', '--series-2', '--series-3', '--series-4', '--series-5']
const HEIGHT = 220

/**
 * A line for each of `series`, `{label, values}` with a number or null for each of `times` (seconds since 1970);
 * `format` writes a figure and `period` a time, which are UTC's. It draws itself anew for another theme or width until `signal` (the view's) is aborted.
 */
export function lineChart({ title, times, series, format = String, period = ['Day', utcDay], signal }) {
  const place = h('div', { class: 'plot', 'aria-hidden': 'true' })
  let plot
  const draw = () => {
    plot?.destroy()
    plot = new uPlot(options(place, series, format, period[1]), [times, ...series.map(({ values }) => values)], place)
  }
  const watching = new ResizeObserver(() => (plot ? plot.setSize({ width: place.clientWidth, height: HEIGHT }) : draw()))
  watching.observe(place)
  addEventListener('themechange', draw, { signal })
  signal?.addEventListener('abort', () => { watching.disconnect(); plot?.destroy() })
  return h('figure', { class: 'chart' }, h('figcaption', {}, title), place, h('details', {}, h('summary', {}, 'As a table'), figures({ title, times, series, format, period })))
}

function options(place, series, format, said) {
  const colour = (name) => getComputedStyle(place).getPropertyValue(name).trim()
  const axis = { stroke: colour('--text-soft'), grid: { stroke: colour('--line'), width: 1 }, ticks: { show: false }, font: '12px system-ui' }
  return {
    width: place.clientWidth, height: HEIGHT, tzDate: (time) => uPlot.tzDate(new Date(1000 * time), 'Etc/UTC'), cursor: { y: false },
    axes: [axis, { ...axis, size: 64, values: (_, ticks) => ticks.map(format) }],
    series: [{ value: (_, time) => (time ? said(1000 * time) : '') }, ...series.map(({ label, values }, at) => ({
      label, stroke: colour(COLOURS[at % COLOURS.length]), width: 2, spanGaps: true, points: isSparse(values) ? { size: 6, show: true } : { size: 5 },
      value: (_, figure) => (figure === null || figure === undefined ? '–' : format(figure)),
    }))],
  }
}

/** Whether there are too few figures for a line. */
const isSparse = (values) => values.filter((value) => value !== null && value !== undefined).length < 3

function figures({ title, times, series, format, period: [period, written] }) {
  const said = (value) => (value === null || value === undefined ? '–' : format(value))
  return table({
    caption: title, rows: times.map((time, at) => ({ time, at })),
    columns: [{ title: period, cell: ({ time }) => written(1000 * time) }, ...series.map(({ label, values }) => ({ title: label, align: 'end', cell: ({ at }) => said(values[at]) }))],
  })
}
