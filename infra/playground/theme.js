// Light or dark before the first paint: what was chosen here, else what the system says. A classic script, for modules come too late.
(() => {
  const dark = matchMedia('(prefers-color-scheme: dark)')
  const chosen = () => localStorage.getItem('theme')
  const apply = () => {
    document.documentElement.dataset.theme = chosen() ?? (dark.matches ? 'dark' : 'light')
    dispatchEvent(new Event('themechange'))
  }
  window.theme = {
    /** `light`, `dark`, or null for the system's. */
    get chosen() { return chosen() },
    choose(name) {
      if (name) localStorage.setItem('theme', name)
      else localStorage.removeItem('theme')
      apply()
    },
  }
  dark.addEventListener('change', apply)
  addEventListener('storage', apply)
  apply()
})()
