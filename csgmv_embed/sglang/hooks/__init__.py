"""What runs in place of SGLang's functions: a file for each kind of layer, and registry.py, which names them all."""
