"""The SGLang plugin: runs LoRA of the csgmv backend on this library's kernels and planner.

SGLang 0.5.11 and later load it through its entry point; for 0.5.10 call `install()`. `status()` says whether it is
active, and `python -m csgmv_embed doctor` prints that. Importing this package imports nothing of SGLang.
"""

from csgmv_embed.sglang.installer import HookStatus, Status, install, register, status
from csgmv_embed.sglang.settings import SettingError
from csgmv_embed.sglang.targets import VersionError

__all__ = ["HookStatus", "SettingError", "Status", "VersionError", "install", "register", "status"]
