"""One model for many visitors: what a server of any kind puts a face to; the app is one, Ray Serve another.

`Service` (service.py) draws, compares, searches, classifies and reads. It knows no widgets and no HTTP.
"""

from altdiffusion.serving.limits import Limits
from altdiffusion.serving.news import Compared, Drawing, Drawn, Found, ModelInfo, Ranked
from altdiffusion.serving.queueing import Busy, Closed, Ticket, Waiting
from altdiffusion.serving.service import Service

__all__ = [
    "Busy",
    "Closed",
    "Compared",
    "Drawing",
    "Drawn",
    "Found",
    "Limits",
    "ModelInfo",
    "Ranked",
    "Service",
    "Ticket",
    "Waiting",
]
