"""The SGLang plugin: embedding LoRA of the csgmv backend on this library's kernel and planner.

SGLang 0.5.11 and later load it by its entry point; for 0.5.10 call `install()`. `status()` says what became of it,
`python -m csgmv_embed doctor` shows it. Importing this package imports nothing of SGLang.
"""

from csgmv_embed.sglang.installer import HookStatus, Status, install, register, status
from csgmv_embed.sglang.settings import SettingError
from csgmv_embed.sglang.targets import VersionError

__all__ = ["HookStatus", "SettingError", "Status", "VersionError", "install", "register", "status"]
