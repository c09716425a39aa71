"""Sans-IO protocol cores: bytes and `now` in, everything to be done out.

No twisted, time, random or sockets here (a test reads the imports).
"""
