"""Models: by the names of papers (`names`, `model`, `attention`, `build`), and small ones, each trained by one command on data that a package
ships: `python -m einfuse.library.models.NAME`."""

from einfuse.library.models.decoder import Decoder as Decoder
from einfuse.library.models.decoder import Layer as Layer
from einfuse.library.models.named import Model as Model
from einfuse.library.models.named import attention as attention
from einfuse.library.models.named import build as build
from einfuse.library.models.named import model as model
from einfuse.library.models.named import names as names
