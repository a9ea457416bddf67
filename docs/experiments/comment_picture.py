"""docs/plots/gate-comment.png: the comment of a gate's record, rendered as a service would, by Chromium.

python -m docs.experiments.comment_picture docs/experiments/h100-planted-1.json docs/plots/gate-comment.png
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from markdown_it import MarkdownIt

WIDTH, HEIGHT = 980, 1600  # px; what lies below is cut off
STYLE = """
body { font: 14px/1.5 sans-serif; margin: 24px; border: 1px solid #d0d7de; border-radius: 6px; padding: 16px }
table { border-collapse: collapse; font-size: 12px } th, td { border: 1px solid #d0d7de; padding: 3px 8px }
img { max-width: 100%; max-height: 1100px } pre { background: #f6f8fa; padding: 8px; overflow: hidden }
"""


def main(record: Path, picture: Path) -> None:
    """Draw `record`, write its comment, and photograph that."""
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        figure, text, page = work / "gate.png", work / "comment.md", work / "comment.html"
        bench = [sys.executable, "-m", "bench"]
        subprocess.run([*bench, "plot", "gate", record, "-o", figure], check=True)
        subprocess.run([*bench, "comment", record, "--picture", "https://figure", "-o", text], check=True)
        html = MarkdownIt("commonmark", {"html": True}).enable("table").render(text.read_text(encoding="utf-8"))
        page.write_text(f"<meta charset=utf-8><style>{STYLE}</style>{html.replace('https://figure', figure.name)}")
        shot = ["chromium", "--headless", "--no-sandbox", "--hide-scrollbars", f"--window-size={WIDTH},{HEIGHT}"]
        subprocess.run([*shot, f"--screenshot={picture.resolve()}", page.as_uri()], check=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
