"""One page that shows what the compiler did: written from a dump (`--dump-ir`) or an artifact.

`page.html` is built from the sources in page/ (`make page`) and has a place for data. `collect` and
`from_artifact` make these data of files, `write` puts them in. `explorer` writes the same as graphs
for Model Explorer.
"""

from .collect import Figures, collect, gather
from .explorer import write_explorer
from .write import write_page

__all__ = ["Figures", "collect", "gather", "write_explorer", "write_page"]
