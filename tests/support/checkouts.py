"""Small git checkouts with a library and a suite, to be changed and measured by nobody."""

from __future__ import annotations

import subprocess
from pathlib import Path

IDENTITY = ("-c", "user.name=n", "-c", "user.email=e@example.org", "-c", "commit.gpgsign=false")
TABLE = "csgmv_embed/tuned/Some-GPU.json"


def run_git(root: Path, *arguments: str) -> str:
    """What git says in a repository."""
    done = subprocess.run(["git", "-C", str(root), *IDENTITY, *arguments], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def write(root: Path, name: str, text: str) -> None:
    """A file and its folders."""
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def fill(root: Path) -> None:
    """A small suite and library."""
    write(root, "csgmv_embed/__init__.py", "A = 1\n")
    write(root, TABLE, '{"num_warps": 4}\n')
    write(root, "bench/measure.py", "B = 1\n")
    write(root, "bench/baselines/work-triton-3.6.json", "{}\n")
    write(root, "bench.toml", "[measure]\n")
    write(root, ".gitignore", "__pycache__/\n*.local.py\n*.log\n")


def commit_all(root: Path) -> str:
    """Make a repository of the folder if it is none, and a commit of all it holds; its hash."""
    root.mkdir(parents=True, exist_ok=True)
    if not (root / ".git").exists():
        run_git(root, "init", "-q", "-b", "main")
    run_git(root, "add", "-A")
    run_git(root, "commit", "-q", "--allow-empty", "-m", "a state")
    return run_git(root, "rev-parse", "HEAD")
