"""Attention of a server: keys in pages, sequences of all lengths in one batch, the same launches whatever the lengths are.

cache = einfuse.serving.Cache.empty(attn, pages=4096, width=16, table=256, batch=64, k=(heads, D), v=(heads, E))
plan = einfuse.serving.plan(attn, cache, q=torch.empty(tokens, H, D))    # capacities: kernels are chosen, buffers laid

cache.length[:] = ...; cache.page[:] = ...                               # the caller's allocator
cache.append(starts, k=k, v=v)                                           # tokens into their pages
plan.update(starts)                                                      # work lists, in place
o = plan.run(q)                                                          # for every layer: plan.run(q, k=.., v=..)
"""

from einfuse.serving.cache import Cache as Cache
from einfuse.serving.plan import Plan as Plan
from einfuse.serving.plan import plan as plan
from einfuse.serving.quantised import quantise as quantise
from einfuse.serving.quantised import quantised as quantised
