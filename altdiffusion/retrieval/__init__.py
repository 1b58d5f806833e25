"""Search in pictures of one's own, by text in any language, by picture, or by both.

`ImageIndex` (index.py) is the way in. Vectors and what is known of each picture lie in Qdrant: embedded
(embedded.py) or on a server (server.py), behind one protocol (engines.py).
"""

from altdiffusion.retrieval.index import Hit, ImageIndex
from altdiffusion.retrieval.report import Report
from altdiffusion.retrieval.where import Where

__all__ = ["Hit", "ImageIndex", "Report", "Where"]
