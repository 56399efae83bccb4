"""Effects of calls on their process and on each other.

__main__.py    concurrent calls of many Python threads
busy.py        concurrent calls beside other programs
waiting.py     the CPU time of threads that wait for the next call
process.py     speedup by threads, import time and memory
"""
