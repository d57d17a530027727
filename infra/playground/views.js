// The views, in the navigation's order. `for: 'owner'` are shown to admins only; the functions check it again.

export const views = [
  { path: 'chat', title: 'Chat', icon: 'chat', for: 'user', load: () => import('./views/chat.js') },
  { path: 'swaps', title: 'Swaps', icon: 'swap', for: 'user', load: () => import('./views/swaps.js') },
  { path: 'usage', title: 'Usage', icon: 'usage', for: 'user', load: () => import('./views/usage.js') },
  { path: 'settings', title: 'Settings', icon: 'settings', for: 'user', load: () => import('./views/settings.js') },
]
