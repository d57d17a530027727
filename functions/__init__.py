"""The functions, one Lambda each.

Nothing that importing makes is garbage: the collector, which would look for some every few milliseconds, is off until
`shared.clients` has opened what a request needs.
"""

import gc

gc.disable()
