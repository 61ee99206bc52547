"""einfuse inside what people already run: torch's own attention functions, transformers' models, timm's models.

    with einfuse.integrations.replace_sdpa(): ...            # torch.nn.functional.scaled_dot_product_attention, nn.MultiheadAttention
    einfuse.integrations.transformers.register("einfuse")    # AutoModel.from_config(config, attn_implementation="einfuse")
    einfuse.integrations.timm.patch(model)                   # a model of timm: same weights, same output
    einfuse.integrations.flash_attn.of("alibi").flash_attn_func(q, k, v, slope=slope)       # flash-attn's functions, of any spec
    print(einfuse.integrations.report(model))                # each attention of a model: replaced, or why not

Importing this package imports neither transformers nor timm.
"""

from einfuse.integrations import flash_attn as flash_attn
from einfuse.integrations import timm as timm
from einfuse.integrations import transformers as transformers
from einfuse.integrations.replacement import replace_sdpa as replace_sdpa
from einfuse.integrations.reports import Report as Report
from einfuse.integrations.reports import report as report
from einfuse.integrations.sdpa import scaled_dot_product_attention as scaled_dot_product_attention
