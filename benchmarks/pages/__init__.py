"""Lookups in tables larger than half of the memory.

__main__.py    measures; each figure in a process of its own
one.py         that process
files.py       the tables, the page cache, the file system
table.py       results to a Markdown table
"""
