// One Chromium for pages.py: a line of JSON on standard input is a call, a line on standard output its result.
import { readFile } from 'node:fs/promises'
import { createRequire } from 'node:module'
import { createInterface } from 'node:readline'
import { chromium } from 'playwright-core'

const AXE = await readFile(createRequire(import.meta.url).resolve('axe-core/axe.min.js'), 'utf8')
const TIMEOUT_MS = 25000
const IMPACTS = ['serious', 'critical']

const browser = await chromium.launch({ executablePath: process.argv[2], args: ['--no-sandbox', '--disable-dev-shm-usage'] })
const contexts = new Map()
const pages = new Map()

const commands = {
  async open({ context, page, options }) {
    if (!contexts.has(context)) contexts.set(context, await browser.newContext(options))
    const opened = await contexts.get(context).newPage()
    opened.setDefaultTimeout(TIMEOUT_MS)
    opened.told = []
    opened.on('console', (message) => message.type() === 'error' && opened.told.push(message.text()))
    opened.on('pageerror', (error) => opened.told.push(String(error.stack)))
    await opened.exposeBinding('tell', (_, text) => opened.told.push(text))
    await opened.addInitScript(() => addEventListener('securitypolicyviolation', (event) => window.tell(`violates ${event.violatedDirective}: ${event.blockedURI} ${event.sample}`)))
    pages.set(page, opened)
  },
  async close({ context }) {
    await contexts.get(context)?.close()
    contexts.delete(context)
  },
  // A method of the page, or of what `locator` finds in it.
  async call({ page, locator, method, args }) {
    const at = pages.get(page)
    return (locator === undefined ? at : at.locator(locator))[method](...args)
  },
  async press({ page, key }) {
    await pages.get(page).keyboard.press(key)
  },
  // Until the expression is true in the page, whose policy lets Playwright's own waiting evaluate nothing.
  async until({ page, expression }) {
    const limit = Date.now() + TIMEOUT_MS
    while (!(await pages.get(page).evaluate(expression).catch(() => false))) {
      if (Date.now() > limit) throw new Error(`never true in ${(await pages.get(page).locator('body').innerText()).slice(0, 2000)}`)
      await new Promise((resolve) => setTimeout(resolve, 20))
    }
  },
  async offline({ context, is }) {
    await contexts.get(context).setOffline(is)
  },
  async told({ page }) {
    return pages.get(page).told.splice(0)
  },
  async screenshot({ page, path }) {
    await pages.get(page).screenshot({ path, animations: 'disabled' })
  },
  async axe({ page }) {
    const at = pages.get(page)
    if (await at.evaluate('!window.axe')) await at.evaluate(AXE)
    const { violations } = await at.evaluate(() => window.axe.run(document, { resultTypes: ['violations'] }))
    return violations.filter(({ impact }) => IMPACTS.includes(impact)).map(({ id, nodes }) => `${id}: ${nodes.map(({ html }) => html.slice(0, 160)).join(' | ')}`)
  },
}

for await (const line of createInterface({ input: process.stdin })) {
  const { command, ...call } = JSON.parse(line)
  try {
    const result = await commands[command](call)
    console.log(JSON.stringify({ result: result ?? null }))
  } catch (error) {
    console.log(JSON.stringify({ error: String(error.message) }))
  }
}
await browser.close()
