"""A real SGLang engine under load: its modes in turns, one fresh process each, and where its step goes."""
