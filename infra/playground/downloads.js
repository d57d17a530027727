// Files of Storage, by addresses that are signed when they are asked for.
import { call } from './api.js'
import { button, toast } from './components.js'
import config from './config.js'
import { h } from './dom.js'

/** A file's address by the route that signs them, at the origin that this page knows the project by. */
export async function signed(route, path) {
  const { files } = await call('GET', route)
  const { pathname, search } = new URL(files.find((file) => file.path === path).url)
  return new URL(pathname + search, config.supabaseUrl)
}

/** A button that downloads a file. */
export const downloadButton = (route, path) => button({ title: `Download ${path}`, symbol: 'download', kind: 'ghost small', onclick: () => download(route, path) })

async function download(route, path) {
  try {
    const url = await signed(route, path)
    url.searchParams.set('download', path.split('/').pop())
    h('a', { href: url, download: path }).click()
  } catch (error) {
    toast(error.message, { kind: 'error' })
  }
}
