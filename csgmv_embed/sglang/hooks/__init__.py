"""The functions that replace SGLang's: a file for each kind of layer, and registry.py, which names them all."""
