"""What tests share. Imported by its name, `from tests.support import gate`; no test puts a folder on the path."""
