"""Workers that run other libraries, each in an environment of its own."""
