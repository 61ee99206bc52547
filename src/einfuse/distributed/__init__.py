"""Any attention over many devices: ranks of a spec along axes of a mesh, local shards in and out.

mesh = init_device_mesh("cpu", (4,), mesh_dim_names=("seq",))
attn = einfuse.distributed.shard(einfuse.compile("causal"), mesh, i="seq", j="seq")
o = attn(q, k, v)          # this device's positions in, this device's positions out; differentiable
"""

from einfuse.distributed.errors import ExchangeError as ExchangeError
from einfuse.distributed.layout import Layout as Layout
from einfuse.distributed.sharded import Sharded as Sharded
from einfuse.distributed.sharded import shard as shard
from einfuse.distributed.use import use as use
