"""The gate: a verdict on a pair. Statistics and decisions are pure; only pairs.py and session.py run anything."""
