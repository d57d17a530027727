// The views, in the navigation's order. `for: 'owner'` are shown to admins only; the functions check it again.

export const views = [
  { path: 'chat', title: 'Chat', icon: 'chat', for: 'user', load: () => import('./views/chat.js') },
  { path: 'swaps', title: 'Swaps', icon: 'swap', for: 'user', load: () => import('./views/swaps.js') },
  { path: 'usage', title: 'Usage', icon: 'usage', for: 'user', load: () => import('./views/usage.js') },
  { path: 'knowledge', title: 'Knowledge', icon: 'book', for: 'owner', load: () => import('./views/knowledge.js') },
  { path: 'models', title: 'Models', icon: 'model', for: 'owner', load: () => import('./views/models.js') },
  { path: 'exports', title: 'Exports', icon: 'download', for: 'owner', load: () => import('./views/exports.js') },
  { path: 'figures', title: 'All usage', icon: 'usage', for: 'owner', load: () => import('./views/figures.js') },
  { path: 'settings', title: 'Settings', icon: 'settings', for: 'user', load: () => import('./views/settings.js') },
]
