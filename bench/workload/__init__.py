"""The tensors of a case, the exact result of its op, and the bytes that the op must move."""
