"""Measures a real SGLang engine under load: its modes in turns, each in a fresh process, and the parts of its step."""
