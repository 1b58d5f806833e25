# transformers' annotations leave everything open: outputs are `tuple | ModelOutput`, parts of a configuration
# are `dict | PreTrainedConfig | None`. So its names count as untyped here.
from typing import Any

def __getattr__(name: str) -> Any: ...
